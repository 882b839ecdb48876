"""One batch of an evaluation before training, to learn what metrics there will be."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import is_not
from typing import TYPE_CHECKING, Any

from torch.utils.data import Subset

from trainer_core.process import own_random_states

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.rehearsal")


def metric_names(trainer: Trainer) -> set[str] | None:
    """Gives the names of the metrics that an evaluation will give, or None when that cannot be told beforehand.

    Evaluates the first rows of each evaluation dataset, once for a trainer; nothing is logged, no hook fires, and the
    random states stay as they are. An object with a memory is rehearsed as a copy; a function that is called batch by
    batch keeps its memory elsewhere and is not called, and one that fails on so few rows tells nothing.
    """
    about = (trainer.compute_metrics, trainer.eval_dataset)
    if trainer.rehearsed is None or any(map(is_not, trainer.rehearsed[0], about)):
        trainer.rehearsed = about, _rehearsed(trainer)
    return trainer.rehearsed[1]


def _rehearsed(trainer: Trainer) -> set[str] | None:
    if (
        trainer.overrides("evaluate")
        or trainer.overrides("get_eval_dataloader")
        or trainer.overrides("evaluation_loop")
    ):
        return None
    if trainer.args.batch_eval_metrics and inspect.isroutine(trainer.compute_metrics):
        return None
    datasets = trainer.eval_dataset
    named = datasets if isinstance(datasets, Mapping) else {"": datasets}
    names: set[str] = set()
    for name, dataset in named.items():
        prefix = f"eval_{name}" if name else "eval"
        found = _names_for(trainer, dataset, prefix)
        if found is None:
            return None
        names |= found
    return names


def _names_for(trainer: Trainer, dataset: Any, prefix: str) -> set[str] | None:
    from trainer_core.evaluate import Evaluation

    few = _first_rows(dataset, trainer.args.per_device_eval_batch_size * trainer.ranks.world_size)
    if few is None:
        return None
    names: set[str] | None = None
    try:
        with own_random_states(trainer.args.seed), _copied_metrics(trainer):
            loss_only = trainer.compute_metrics is None
            rehearsed = Evaluation(trainer, prefix, loss_only=loss_only, ignore_keys=None, is_told=False)
            rehearsed.ranks = copy.copy(trainer.ranks)
            rehearsed.ranks.world_size = 1  # each rank by itself: one that fails must not leave the others waiting
            names = set(rehearsed.run(trainer.get_eval_dataloader(few)).metrics)
    except Exception as error:
        logger.debug("the metrics of an evaluation are not known before training, a rehearsal gave %r", error)
    of_ranks = trainer.ranks.gather_objects(names)
    return None if None in of_ranks else names


@contextmanager
def _copied_metrics(trainer: Trainer) -> Iterator[None]:
    """Lets a copy compute the metrics, so that the user's own object remembers nothing of it.

    A method is called as it is: what it belongs to may be a trainer, or hold all the data.
    """
    own = trainer.compute_metrics
    trainer.compute_metrics = own if inspect.isroutine(own) else copy.deepcopy(own)
    try:
        yield
    finally:
        trainer.compute_metrics = own


def _first_rows(dataset: Any, rows: int) -> Any | None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    rows = min(rows, len(dataset))
    return dataset.select(range(rows)) if hasattr(dataset, "select") else Subset(dataset, range(rows))
