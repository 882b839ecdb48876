"""Work that all ranks do together: it is done on every one of them, or fails on every one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from trainer_core import CheckpointError

if TYPE_CHECKING:
    from trainer_core import Trainer

Result = TypeVar("Result")


def agreed(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Gives this rank's result of `work` when every rank has done it.

    Raises:
        CheckpointError: it failed on another rank. On the rank where it failed the error is raised as it is.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    told = trainer.ranks.gather_objects("" if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for rank, text in enumerate(told):
        if text:
            raise CheckpointError(f"rank {rank}: {text}")
    return result


def on_main(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Gives the main rank's result of `work`, which it does alone, on every rank; for small results."""
    result = agreed(trainer, work if trainer.is_main_rank else _nothing)
    answer: Result = trainer.ranks.from_main(result)
    return answer


def _nothing() -> None:
    return None
