"""The rows that a run logs of its own training, and how it ends: the closing row, and the best model."""

from __future__ import annotations

import signal
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from trainer_core.phases import Signal

RESUMABLE: Final = 75
"""Exit code of a run that a plugin cut short, to go on when it is resumed (EX_TEMPFAIL of sysexits.h)."""

if TYPE_CHECKING:
    from trainer_core.loop import Loop
    from trainer_core.trainer import Trainer


def finish(trainer: Trainer, loop: Loop) -> None:
    """Logs the closing row, brings back the best model, and sets the outcome."""
    request = loop.raised.get(Signal.STOP)
    if request is not None and request.interrupt:
        trainer.outcome = "interrupted"
    elif request is not None and not request.is_planned:
        trainer.outcome = "stopped"
    else:
        trainer.outcome = "completed"
    trainer.stop_request = request
    if trainer.finished is not None:
        trainer.train_metrics = dict(trainer.finished["metrics"])
    else:
        trainer.train_metrics = closing_metrics(trainer, loop)
        if trainer.outcome == "interrupted":
            return  # the row that closes the log is that of the run that finishes
        trainer.log(trainer.train_metrics)
    best = trainer.bus.ask("read_best_model", trainer=trainer)
    if best is not None:
        trainer.loaded_best_from = best


def exit_code(trainer: Trainer) -> int:
    """Gives the exit code for how the last call of `train()` ended."""
    if trainer.outcome == "failed":
        return 1
    if trainer.outcome != "interrupted" or trainer.stop_request is None:
        return 0
    name, _, _ = trainer.stop_request.by.partition(" ")  # "SIGTERM (rank 1)"
    return 128 + signal.Signals[name] if name in signal.Signals.__members__ else RESUMABLE


def closing_metrics(trainer: Trainer, loop: Loop) -> dict[str, Any]:
    """Gives what this call of `train()` did: its rates count only what it trained itself."""
    seconds = perf_counter() - loop.started
    return {
        "train_runtime": round(seconds, 4),
        **loop.tally.rates(seconds),
        "train_loss": mean_train_loss(trainer, loop),
        **tokens_seen(trainer),
        **trainer.memory.take("train"),
    }


def tokens_seen(trainer: Trainer) -> dict[str, int]:
    """Gives what every row says of tokens; nothing unless it is asked for."""
    wanted = trainer.args.include_num_input_tokens_seen != "no"
    return {"num_input_tokens_seen": trainer.state.num_input_tokens_seen} if wanted else {}


def mean_train_loss(trainer: Trainer, loop: Loop) -> float:
    """Gives the mean loss of all updates since the run began, over all ranks; 0 for none."""
    own, updates = loop.meter.mean()
    (total,) = trainer.ranks.sum_of_numbers(own)
    return total / updates if updates else 0.0


def training_row(trainer: Trainer, loop: Loop) -> dict[str, Any]:
    """Gives loss, gradient norm and learning rate since the last row; empty when there was no update since."""
    loop.stepper.guard.settle()
    meter = loop.meter
    total, updates = meter.read()
    if updates == 0:
        return {}
    (total,) = trainer.ranks.sum_of_numbers(total)
    row: dict[str, Any] = {"loss": total / updates}
    if meter.grad_norm is not None:
        row["grad_norm"] = float(meter.grad_norm)
    return row | {"learning_rate": float(meter.learning_rate)}
