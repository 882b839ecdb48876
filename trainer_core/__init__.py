"""trainer_core: a training loop for PyTorch that is a walk over a table, on a plugin bus.

    from trainer_core import Trainer, TrainingArguments

    trainer = Trainer(model=model, args=TrainingArguments("runs/first"), train_dataset=dataset)
    trainer.train()

Where to begin reading:

    phases       the table: which phase follows which, and why in that order
    loop         six handlers, one a phase, and the walk over the table
    step         one update: forward, backward, clip, step, schedule
    hookspecs    every hook that a plugin can listen to or answer
    bus          who listens, in which order, at what cost
    trainer      the user's face

Names are imported when they are first used: `import trainer_core` itself costs almost nothing. A plugin's distribution
may offer names of its own here, through the entry-point group `trainer_core.names`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainer_core.best import best_metric_name as best_metric_name
    from trainer_core.best import is_better as is_better
    from trainer_core.best import missing_metric as missing_metric
    from trainer_core.cadence import Cadence as Cadence
    from trainer_core.cadence import interval as interval
    from trainer_core.callbacks import TrainerCallback as TrainerCallback
    from trainer_core.callbacks import TrainerControl as TrainerControl
    from trainer_core.closing import closing_state as closing_state
    from trainer_core.data.collation import default_data_collator as default_data_collator
    from trainer_core.errors import CheckpointError as CheckpointError
    from trainer_core.errors import DataError as DataError
    from trainer_core.errors import DistributedError as DistributedError
    from trainer_core.errors import InvalidCheckpointError as InvalidCheckpointError
    from trainer_core.errors import ModelError as ModelError
    from trainer_core.errors import NonFiniteLossError as NonFiniteLossError
    from trainer_core.errors import OwnershipError as OwnershipError
    from trainer_core.errors import PluginError as PluginError
    from trainer_core.errors import SettingsError as SettingsError
    from trainer_core.errors import TrainerCoreError as TrainerCoreError
    from trainer_core.errors import TransitionError as TransitionError
    from trainer_core.errors import printable as printable
    from trainer_core.evaluate import PredictionOutput as PredictionOutput
    from trainer_core.files import replace_file as replace_file
    from trainer_core.hookspecs import hookimpl as hookimpl
    from trainer_core.journal import journal_records as journal_records
    from trainer_core.metrics import EvalPrediction as EvalPrediction
    from trainer_core.ownership import owned as owned
    from trainer_core.phases import Phase as Phase
    from trainer_core.phases import Signal as Signal
    from trainer_core.plan import Plan as Plan
    from trainer_core.plan import in_bytes as in_bytes
    from trainer_core.rehearsal import metric_names as metric_names
    from trainer_core.settings.argument_parser import ArgumentParser as ArgumentParser
    from trainer_core.settings.argument_parser import HfArgumentParser as HfArgumentParser
    from trainer_core.settings.arguments import TrainingArguments as TrainingArguments
    from trainer_core.settings.change import Change as Change
    from trainer_core.settings.change import Side as Side
    from trainer_core.settings.names import greater_is_better as greater_is_better
    from trainer_core.settings.secrecy import mask_secrets as mask_secrets
    from trainer_core.settings.secrecy import mask_text as mask_text
    from trainer_core.settings.section import Interval as Interval
    from trainer_core.settings.section import Section as Section
    from trainer_core.state import Saving as Saving
    from trainer_core.state import TrainerState as TrainerState
    from trainer_core.trainer import Trainer as Trainer
    from trainer_core.trainer import TrainOutput as TrainOutput
    from trainer_core.variation import with_settings as with_settings
    from trainer_core.weights import write_model as write_model

__version__ = "0.1.0"

_HOMES: Final = {
    "ArgumentParser": "settings.argument_parser",
    "Cadence": "cadence",
    "Change": "settings.change",
    "CheckpointError": "errors",
    "DataError": "errors",
    "DistributedError": "errors",
    "EvalPrediction": "metrics",
    "HfArgumentParser": "settings.argument_parser",
    "Interval": "settings.section",
    "InvalidCheckpointError": "errors",
    "ModelError": "errors",
    "NonFiniteLossError": "errors",
    "OwnershipError": "errors",
    "Phase": "phases",
    "Plan": "plan",
    "PluginError": "errors",
    "PredictionOutput": "evaluate",
    "Saving": "state",
    "Section": "settings.section",
    "SettingsError": "errors",
    "Side": "settings.change",
    "Signal": "phases",
    "TrainOutput": "trainer",
    "Trainer": "trainer",
    "TrainerCallback": "callbacks",
    "TrainerControl": "callbacks",
    "TrainerCoreError": "errors",
    "TrainerState": "state",
    "TrainingArguments": "settings.arguments",
    "TransitionError": "errors",
    "best_metric_name": "best",
    "closing_state": "closing",
    "default_data_collator": "data.collation",
    "greater_is_better": "settings.names",
    "hookimpl": "hookspecs",
    "in_bytes": "plan",
    "interval": "cadence",
    "is_better": "best",
    "journal_records": "journal",
    "mask_secrets": "settings.secrecy",
    "mask_text": "settings.secrecy",
    "metric_names": "rehearsal",
    "missing_metric": "best",
    "owned": "ownership",
    "printable": "errors",
    "replace_file": "files",
    "with_settings": "variation",
    "write_model": "weights",
}
"""Public names and the module of each."""

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605 # the table above is the one list of names


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        value = _of_a_plugin(name)
    globals()[name] = value
    return value


def _of_a_plugin(name: str) -> Any:
    """Gives a name that an installed plugin offers here.

    Raises:
        AttributeError: none offers it.
        PluginError: what offers it is broken.
    """
    from importlib.metadata import entry_points

    offered = () if name.startswith("_") else tuple(entry_points(group=f"{__name__}.names", name=name))
    if not offered:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_where_from(name)}")
    try:
        return offered[0].load()
    except Exception as error:
        errors = importlib.import_module(f"{__name__}.errors")
        raise errors.PluginError(
            f"{name}: the name {offered[0].value} cannot be loaded ({type(error).__name__}: {error}). "
            f"Repair or uninstall its distribution."
        ) from error


def _where_from(name: str) -> str:
    names = importlib.import_module(f"{__name__}.settings.names")
    return f". Install it: pip install {names.distribution_of(names.NAME_OF[name])}." if name in names.NAME_OF else ""


def __dir__() -> list[str]:
    return list(__all__)
