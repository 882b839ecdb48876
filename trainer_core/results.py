"""What a script shows and keeps of a run when it is over: metrics as a table and as files, and the run's state.

    <split>_results.json    the metrics of one split
    all_results.json        those of all splits, merged
    trainer_state.json      counters and log history, under the names that transformers' TrainerState reads

Only the main rank prints and writes. A file is whole at every instant: the old one or the new one. The files are
strict JSON, which has no word for numbers that are not finite: these are the strings "NaN", "Infinity" and
"-Infinity", which Python's `float` reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import DataError
from trainer_core.files import replace_file
from trainer_core.metrics import plain

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

COMBINED: Final = "all_results.json"
STATE: Final = "trainer_state.json"
STATE_KEYS: Final = (
    "best_global_step",
    "best_metric",
    "best_model_checkpoint",
    "epoch",
    "eval_steps",
    "global_step",
    "is_hyper_param_search",
    "is_local_process_zero",
    "is_world_process_zero",
    "log_history",
    "logging_steps",
    "max_steps",
    "num_input_tokens_seen",
    "num_train_epochs",
    "save_steps",
    "train_batch_size",
    "trial_name",
    "trial_params",
)


def formatted(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Gives metrics as one reads them: times as h:mm:ss, memory in MiB, other fractions with few digits."""
    return {name: _readable(name, plain(value)) for name, value in metrics.items()}


def print_metrics(trainer: Trainer, split: str, metrics: Mapping[str, Any]) -> None:
    """Prints metrics as a table, sorted by name."""
    if not trainer.is_main_rank:
        return
    shown = {name: str(value) for name, value in sorted(formatted(metrics).items())}
    names, values = max(map(len, shown), default=0), max(map(len, shown.values()), default=0)
    lines = [f"  {name:<{names}} = {value:>{values}}" for name, value in shown.items()]
    print(f"***** {split} metrics *****", *lines, sep="\n", flush=True)


def write_metrics(trainer: Trainer, split: str, metrics: Mapping[str, Any], *, combined: bool) -> None:
    """Writes the metrics of `split` into `output_dir`, and into the file of all splits.

    Raises:
        DataError: the split's name is none of a file, the metrics are no mapping, or the file of all splits holds
            something else.
    """
    if not isinstance(metrics, Mapping):
        raise DataError(
            f"save_metrics: metrics must be a mapping, got {type(metrics).__name__}. Pass what an evaluation gave."
        )
    if not split or Path(split).name != split:
        raise DataError(f"save_metrics: split must be a plain name, got {split!r}. Use for example 'eval'.")
    if not trainer.is_main_rank:
        return
    folder = Path(trainer.args.output_dir)
    write_json(folder / f"{split}_results.json", metrics)
    if combined:
        write_json(folder / COMBINED, _read(folder / COMBINED) | dict(metrics))


def write_state(trainer: Trainer) -> None:
    """Writes the state of the run, with its whole log history, into `output_dir`."""
    if trainer.is_main_rank:
        write_json(Path(trainer.args.output_dir) / STATE, {key: getattr(trainer.state, key) for key in STATE_KEYS})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` as strict JSON, sorted by name; what JSON cannot hold becomes its text.

    The file is complete and durable before it gets its name; one that was there stays until then.
    """
    text = json.dumps(_strict(values), indent=2, sort_keys=True, allow_nan=False, default=str)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{text}\n".encode())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no JSON object, metrics cannot be added to it. Move the file away.")
    return found


def _readable(name: str, value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return value
    if "_mem_" in name:
        return f"{value / 2**20:.0f}MiB"
    if name.endswith("_runtime"):
        return _clock(value)
    if isinstance(value, int):
        return value
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.4g}")


def _clock(seconds: float) -> str:
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{hundredths / 100:05.2f}"


def _strict(value: Any) -> Any:
    """Gives `value` as strict JSON has it: names are text, numbers that are not finite are strings."""
    if isinstance(value, Mapping):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    value = plain(value)
    if isinstance(value, list | dict):
        return _strict(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
