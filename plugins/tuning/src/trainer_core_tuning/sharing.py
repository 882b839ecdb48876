"""One search on several ranks: the main rank proposes and decides, and all ranks know the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trainer_core import DistributedError

if TYPE_CHECKING:
    from optuna.trial import Trial

    from trainer_core import Trainer

T = TypeVar("T")


def on_main(trainer: Trainer, work: Callable[[], T]) -> T:
    """Gives on every rank what `work` gives on the main rank; where it fails, it fails on every rank.

    Raises:
        DistributedError: it failed on the main rank; there its own error is raised.
    """
    ranks = trainer.ranks
    if ranks.world_size == 1:
        return work()
    value: Any = None
    error: Exception | None = None
    if ranks.is_main:
        try:
            value = work()
        except Exception as caught:
            error = caught
    value, told = ranks.from_main((value, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    if told is not None:
        raise DistributedError(f"hyperparameter_search: the main rank failed, {told}")
    given: T = value
    return given


class SharedTrial:
    """A trial as `model_init` sees it on one of several ranks: what it suggests comes from the main rank.

    Each rank must ask for the same suggestions in the same order.

    Args:
        trainer: whose ranks they are.
        trial: Optuna's, on the main rank; None elsewhere.
        number: of the trial.
        params: what was suggested so far.
    """

    def __init__(self, trainer: Trainer, trial: Trial | None, number: int, params: dict[str, Any]) -> None:
        self.number = number
        self.params = dict(params)
        self._trainer = trainer
        self._trial = trial

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("suggest_"):
            raise AttributeError(f"trial: has no {name!r} with several ranks. Use suggest_…, number or params.")

        def suggest(parameter: str, *args: Any, **options: Any) -> Any:
            value = on_main(self._trainer, lambda: getattr(self._trial, name)(parameter, *args, **options))
            self.params[parameter] = value
            return value

        return suggest
