"""One trial: a run with other settings in a folder of its own, watched at its evaluations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from trainer_core import ModelError, Phase, Signal, hookimpl, with_settings
from trainer_core_tuning.objective import Metrics
from trainer_core_tuning.sharing import on_main

if TYPE_CHECKING:
    from torch import nn

    from trainer_core import Trainer, TrainingArguments
    from trainer_core_tuning.proposal import Proposal


class Watch:
    """A plugin on the bus of a trial: keeps what evaluations gave, and ends the run where `judge` says why.

    Args:
        proposal: the trial.
        judge: from step and metrics to why the run is to end, or None; asked on the main rank.
        models: that were there before; the trial's comes to them.
    """

    name = "tuning_trial"

    def __init__(
        self,
        proposal: Proposal,
        judge: Callable[[int, Metrics], str | None],
        models: list[ReferenceType[nn.Module]],
    ) -> None:
        self.proposal = proposal
        self.judge = judge
        self.models = models
        self.metrics: dict[int, dict[str, Any]] = {}
        self.pruned_because: str | None = None

    def on_phase(self, trainer: Trainer, phase: Phase) -> None:
        """Names the trial in the run's state."""
        if phase is Phase.INIT:
            state = trainer.state
            state.is_hyper_param_search = True
            state.trial_name, state.trial_params = self.proposal.run, dict(self.proposal.params)

    @hookimpl(tryfirst=True)
    def on_train_begin(self, trainer: Trainer) -> None:
        """Refuses a model that is not new: it would go on from what an earlier trial has learnt.

        Raises:
            ModelError: `model_init` has given it before.
        """
        model = trainer.model
        if any(known() is model for known in self.models):
            told = f"got a {type(model).__name__} in trial {self.proposal.number} that it has given before"
            raise ModelError(f"model_init: must make a new model each time, {told}. Make the model in model_init.")
        self.models.append(ref(model))

    @hookimpl(trylast=True)
    def on_eval_end(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        """Reports the evaluation, but for the last one, after which there is nothing to end."""
        step = trainer.state.global_step
        self.metrics[step] = dict(metrics)
        if step < trainer.state.max_steps:
            self.pruned_because = on_main(trainer, lambda: self.judge(step, metrics))
        if self.pruned_because is not None:
            trainer.request(Signal.STOP, by="tuning", why=self.pruned_because)

    def closing_metrics(self, trainer: Trainer) -> dict[str, Any]:
        """Gives the metrics of the model that the run ends with: the last, or the best where that was brought back.

        They are those of the evaluation at that update; where there was none, the model is evaluated now.
        """
        state = trainer.state
        step = state.global_step if trainer.loaded_best_from is None else state.best_global_step
        known = None if step is None else self.metrics.get(step)
        return known if known is not None else dict(trainer.evaluate())


def run_trial(trainer: Trainer, args: TrainingArguments, watch: Watch, trial: Any) -> dict[str, Any] | None:
    """Trains with `args` and gives the closing metrics; None where the run was pruned or interrupted.

    Args:
        trainer: the caller's; it is as it was, afterwards.
        args: of the trial.
        watch: of the trial.
        trial: what `model_init` gets.

    Raises:
        KeyboardInterrupt: the run was interrupted in order.
    """
    try:
        with with_settings(trainer, args, [watch]):
            trainer.train(resume_from_checkpoint=False, trial=trial)
            if trainer.outcome == "interrupted":
                request = trainer.stop_request
                raise KeyboardInterrupt("" if request is None else f"{request.by}: {request.why}")
            return None if watch.pruned_because is not None else watch.closing_metrics(trainer)
    finally:
        gc.collect()  # a trainer and its model refer to each other; the next trial needs the memory
