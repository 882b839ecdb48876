"""The best evaluation so far, by the metric that the settings name."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.best")


def best_metric_name(trainer: Trainer) -> str:
    """Gives the full name of the metric that decides, `eval_loss` unless the settings say otherwise."""
    name = trainer.args.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"


def is_better(trainer: Trainer, value: float, than: float | None) -> bool:
    """Tells whether `value` is strictly better; one that is not finite never is, and any other is better than None."""
    if not math.isfinite(value):
        return False
    if than is None:
        return True
    return value > than if trainer.args.greater_is_better else value < than


def remember_best(trainer: Trainer, metrics: Mapping[str, Any]) -> bool:
    """Takes an evaluation into account for the best metric and for a schedule that waits for it.

    Returns:
        Whether it is the best so far.

    Raises:
        SettingsError: the metric that the settings name is missing, or no number.
    """
    name, state = best_metric_name(trainer), trainer.state
    if name not in metrics:
        if trainer.args.metric_for_best_model is not None:
            raise SettingsError([missing_metric("metric_for_best_model", trainer.args.metric_for_best_model, metrics)])
        return False
    try:
        value = float(metrics[name])
    except (TypeError, ValueError):
        raise SettingsError(
            [f"metric_for_best_model: {name} is no number, got {metrics[name]!r}. Give a number in compute_metrics."]
        ) from None
    if not math.isfinite(value):
        logger.warning("step %d: %s is %s and counts as no improvement.", state.global_step, name, _spelled(value))
    is_best = is_better(trainer, value, state.best_metric)
    if is_best:
        state.best_metric, state.best_global_step = value, state.global_step
    on_metric = getattr(trainer.lr_scheduler, "on_metric", None)
    if on_metric is not None:
        on_metric(value)
    elif trainer.waits_for_metric:
        trainer.lr_scheduler.step(value)
    return is_best


def _spelled(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"


def missing_metric(setting: str, wanted: str, known: Iterable[str]) -> str:
    """Says that no evaluation gives the metric `wanted` of a setting, and what the `known` ones are."""
    numbers = [name.removeprefix("eval_") for name in known if not name.endswith(_NO_METRICS)]
    hint = did_you_mean(wanted.removeprefix("eval_"), numbers)
    return (
        f"{setting}: no evaluation gives this metric, got {wanted!r}.{hint} "
        f"Evaluations give {', '.join(numbers) or 'no metric'}; compute it in compute_metrics or name one of these."
    )


_NO_METRICS: Final = ("_runtime", "_samples_per_second", "_steps_per_second", "epoch")
