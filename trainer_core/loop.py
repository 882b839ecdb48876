"""The loop: six handlers, one a phase, and the walk over the table.

    INIT   prepare model, optimizer and data; load the checkpoint to resume from
    EPOCH  open an epoch, or close the one that is used up
    STEP   fetch the micro-batches of one update, train on them, count
    EVAL   evaluate; remember the best metric
    SAVE   ask for a checkpoint
    STOP   log the summary, bring back the best model

A handler works by calling plain modules, tells the world through hooks and raises signals; it never calls another
handler. Which phase follows is read from the table in `phases`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainer_core.agreement import Agreement
from trainer_core.batching import new_batching
from trainer_core.best import remember_best
from trainer_core.boundary import Boundary, Interrupted
from trainer_core.bus import SAMPLE_EVERY
from trainer_core.closing import is_finished, load_closing
from trainer_core.errors import DataError
from trainer_core.journal import Journal
from trainer_core.meter import LossMeter
from trainer_core.phases import LOWERED_ON_ENTRY, Phase, Signal, check_exit, next_phase
from trainer_core.plugin_states import PluginStates
from trainer_core.preparation import prepare
from trainer_core.saves import Saves
from trainer_core.snapshot import foresee_checkpoint, load_checkpoint
from trainer_core.splitting import stepper_of
from trainer_core.state import Request
from trainer_core.summary import finish
from trainer_core.tally import tally_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

logger = logging.getLogger("trainer_core.loop")


class Loop:
    """One walk from INIT to STOP.

    Args:
        trainer: whose objects are trained.
        resume_from: a checkpoint's folder, True for the newest, False to start anew.
    """

    def __init__(self, trainer: Trainer, resume_from: str | bool) -> None:
        self.trainer = trainer
        self.bus = trainer.bus
        self.state = trainer.state
        self.args = trainer.args
        self.ranks = trainer.ranks
        self.resume_from = resume_from
        self.phase = Phase.INIT
        self.raised: dict[Signal, Request] = {}
        self.agreement = Agreement(self)
        self.journal = Journal(trainer.journal_path, self.ranks.rank)
        self.meter = LossMeter(self.ranks.device)
        self.saves = Saves(trainer)
        self.boundary = Boundary(self.state, self.ranks.device)
        self.is_waiting = False
        self.entered_for: Request | None = None
        self.postponed: Request | None = None
        self.batches: Iterator[Any] | None = None
        self.window: Sequence[Any] = ()
        self.plugin_states = PluginStates()
        self.batching = new_batching(self.args, self.ranks.world_size)
        self.handlers = {
            Phase.INIT: self.init,
            Phase.EPOCH: self.epoch,
            Phase.STEP: self.step,
            Phase.EVAL: self.evaluate,
            Phase.SAVE: self.save,
            Phase.STOP: self.stop,
        }

    def run(self) -> None:
        """Walks from INIT to the end of STOP."""
        self.journal.open()
        self.bus.tell("on_phase", trainer=self.trainer, phase=self.phase)
        while True:
            try:
                self.handlers[self.phase]()
            except Interrupted:
                self.give_up()
            if self.saves.durable:
                self.saves.announce()
            if self.ranks.world_size > 1:
                self.agreement.reach()
            if self.bus.is_stale:
                if self.bus.failure is not None and self.ranks.world_size == 1:
                    raise self.bus.failure
                self.agreement.look()
                self.hooks, self.timed_hooks = self.bus.step_hooks()
            if self.phase is Phase.STOP:
                return self.journal.left(Phase.STOP, self.state.global_step, None, Signal.READY, None)
            if self.raised:
                self.drop_served()
            target, signal = next_phase(self.phase, self.raised)
            if target is not Phase.STEP or self.phase is not Phase.STEP:
                self.enter(target, signal)

    def enter(self, target: Phase, signal: Signal) -> None:
        """Leaves the phase for `target`, which `signal` decided.

        Raises:
            TransitionError: the table has no such exit; the phase is left as it was.
        """
        check_exit(self.phase, target)
        self.journal.left(self.phase, self.state.global_step, target, signal, self.raised.get(signal))
        self.phase, self.entered_for = target, self.raised.get(signal)
        if target in LOWERED_ON_ENTRY:
            self.raised.pop(LOWERED_ON_ENTRY[target], None)
        self.bus.tell("on_phase", trainer=self.trainer, phase=target)

    def init(self) -> None:
        """Prepares everything, loads a checkpoint, tells the plugins, and asks for what is due before training."""
        trainer, state, args = self.trainer, self.state, self.args
        if self.resume_from:
            self.resume_from = foresee_checkpoint(trainer, self.resume_from)
        prepare(trainer)
        self.stream = trainer.train_stream
        self.stepper = stepper_of(trainer, self.meter)
        self.tally = tally_of(trainer)
        if self.resume_from:
            load_checkpoint(trainer, self.resume_from)
        self.tally.begin()
        self.hooks, self.timed_hooks = self.bus.step_hooks()
        self.started = perf_counter()
        if is_finished(trainer):
            self.raised[Signal.STOP] = load_closing(trainer)
            return
        trainer.finished = None
        self.bus.tell("on_train_begin", trainer=trainer)
        self.end_epoch("no epoch is open yet")
        if state.stopped_by is not None:
            self.request(Signal.STOP, by=state.stopped_by["by"], why=state.stopped_by["why"])
        self.stop_at_the_end()
        if args.eval_on_start and state.global_step == 0:
            self.request(Signal.EVAL, by="eval_on_start", why="before the first update")

    def epoch(self) -> None:
        """Closes the open epoch, or opens the next one; a resumed run opens the one it was in, where it was in it."""
        state, is_stopping = self.state, Signal.STOP in self.raised
        if self.batches is not None or (state.epoch_is_open and is_stopping):
            self.batches = None
            if not self.is_interrupted:
                self.close_epoch()
        elif not is_stopping:
            state.epoch_is_open = True
            self.bus.tell("on_epoch_begin", trainer=self.trainer)
            if Signal.STOP in self.raised and not self.is_interrupted:
                self.close_epoch()
                return
            self.stepper.refresh()
            self.boundary.watch(self.trainer.model)
            self.batches = self.stream.epoch(state.epochs_done, state.batches_done)

    def step(self) -> None:
        """Does one update: fetch its micro-batches, train, count, tell, and ask for what is due after it."""
        state, trainer = self.state, self.trainer
        assert self.batches is not None
        self.boundary.mark()
        self.is_waiting = self.ranks.world_size == 1
        window = list(islice(self.batches, self.batching.accumulation))
        self.is_waiting = False
        if not window:
            self.end_of_data()
            return
        self.window = window
        step = state.global_step + 1
        hooks = self.hooks if step % SAMPLE_EVERY else self.timed_hooks
        if hooks.on_step_begin is not None:
            hooks.on_step_begin(trainer)
        state.batches_done += len(window)
        is_last = state.batches_done == self.stream.num_batches
        is_padded = self.is_padded(is_last)
        self.tally.add(window, is_padded=is_padded)
        self.stepper.update(window, hooks, step, is_padded=is_padded)
        state.global_step = step
        state.epoch = self.fraction(is_last)
        if is_last:
            self.end_epoch(f"the data of epoch {state.epochs_done + 1} is used up")
        if step >= state.max_steps:
            self.request(Signal.STOP, by="max_steps", why=f"all {step} updates are done")
        if trainer.eval_cadence.is_due(step, state.max_steps):
            self.request(Signal.EVAL, by="eval_strategy", why=trainer.eval_cadence.reason(step, state.max_steps))
        if hooks.on_step_end is not None:
            hooks.on_step_end(trainer)
        self.window = ()

    def evaluate(self) -> None:
        """Evaluates, as the user may have overridden it, and remembers the best metric."""
        self.stepper.guard.settle()
        self.boundary.mark()
        self.state.last_eval_step = self.state.global_step
        metrics = self.trainer.evaluate()
        self.boundary.forget()
        if remember_best(self.trainer, metrics):
            self.bus.tell("on_new_best", trainer=self.trainer)
        self.bus.tell("on_eval_end", trainer=self.trainer, metrics=metrics)

    def save(self) -> None:
        """Asks for a checkpoint and announces it; one that is written behind the training when it is durable."""
        self.stepper.guard.settle()
        self.saves.announce()  # of the one before: when this one is made it may be rotated away
        checkpoint = self.saves.ask()
        if checkpoint is None:
            logger.warning("step %d: a save was asked for, and no plugin writes checkpoints.", self.state.global_step)
        self.saves.announce()

    def stop(self) -> None:
        """Logs the summary of training, brings back the best model, and tells that training is over."""
        self.saves.announce()
        self.stepper.guard.settle()
        self.boundary.mark()
        finish(self.trainer, self)
        if self.trainer.finished is None:
            self.bus.tell("on_train_end", trainer=self.trainer)

    def close_epoch(self) -> None:
        """Ends the open epoch and asks for the evaluation that is due at its end."""
        state, length = self.state, self.stream.num_batches
        if Signal.STOP not in self.raised or (length is not None and state.batches_done >= length):
            state.epochs_done, state.batches_done = state.epochs_done + 1, 0
            state.epoch = float(state.epochs_done)
        state.epoch_is_open = False
        self.stop_at_the_end()
        if self.args.eval_strategy == "epoch" and state.epoch >= self.args.eval_delay:
            self.request(Signal.EVAL, by="eval_strategy", why=f"the end of epoch {state.epoch:g}")
        self.bus.tell("on_epoch_end", trainer=self.trainer)
        self.end_epoch(f"epoch {state.epoch:g} is closed")

    def stop_at_the_end(self) -> None:
        """Asks to stop when the updates of the plan are done, or its epochs, of which some were cut short."""
        state = self.state
        if state.global_step >= state.max_steps:
            self.request(Signal.STOP, by="max_steps", why=f"all {state.max_steps} updates are done")
        elif state.num_train_epochs and state.epochs_done >= state.num_train_epochs:
            self.request(Signal.STOP, by="num_train_epochs", why=f"all {state.num_train_epochs} epochs are done")

    def end_epoch(self, why: str) -> None:
        """Raises EPOCH_END in the loop's own name."""
        self.raised.setdefault(Signal.EPOCH_END, Request(Signal.EPOCH_END, "loop", why))

    def end_of_data(self) -> None:
        """The data of an epoch without a known length is used up."""
        if self.state.batches_done == 0:
            raise DataError(
                "train_dataset: gives no batch. Pass one with at least one sample, or turn dataloader_drop_last off."
            )
        self.end_epoch(f"the data of epoch {self.state.epochs_done + 1} is used up")

    def request(self, signal: Signal, *, by: str, why: str, interrupt: bool = False, local: bool = False) -> None:
        """Raises `signal` for `by`, because of `why`.

        Args:
            signal: EVAL, SAVE or STOP.
            by: who asks.
            why: the reason, for the journal.
            interrupt: for STOP: the run is cut short and goes on when it is resumed; it comes before other stops.
            local: only this rank knows of the cause; the ranks agree at the next boundary.
        """
        request = Request(signal, by, why, interrupt)
        if local and self.ranks.world_size > 1:
            self.agreement.requests.append(request)
            return
        held = self.raised.get(signal)
        if held is None or (interrupt and not held.interrupt):
            self.raised[signal] = request
        is_for_good = signal is Signal.STOP and not interrupt and not request.is_planned
        if is_for_good and (held is None or held.interrupt) and self.state.stopped_by is None:
            self.state.stopped_by = {"by": by, "why": why}

    def drop_served(self) -> None:
        """Takes back requests for an evaluation or a save that this update already had.

        A run that is cut short saves at once: its evaluation waits in the checkpoint for the run that goes on.
        """
        state = self.state
        if self.is_interrupted and Signal.EVAL in self.raised:
            self.postponed = self.raised.pop(Signal.EVAL)
        if state.last_eval_step == state.global_step:
            self.raised.pop(Signal.EVAL, None)
        if state.last_save_step == state.global_step:
            self.raised.pop(Signal.SAVE, None)

    def give_up(self) -> None:
        """Puts back what an update or an evaluation had begun that ended too early; the evaluation stays due."""
        self.is_waiting = False
        self.boundary.put_back()
        if self.phase is Phase.EVAL:
            self.postponed = self.entered_for

    def safe_point(self, batch: int, common: int) -> None:
        """Gives an evaluation up when the run is to be cut short; called after each of its batches.

        Args:
            batch: how many are done on this rank.
            common: up to which batch all ranks come here.

        Raises:
            Interrupted: on all ranks at the same batch.
        """
        self.agreement.reach_in_evaluation(batch, common)
        if self.is_interrupted:
            raise Interrupted

    @property
    def pending(self) -> Request | None:
        """The evaluation that is due and was not made yet."""
        return self.postponed or self.raised.get(Signal.EVAL)

    def is_padded(self, is_last: bool) -> bool:
        """Tells whether the last micro-batch fetched only keeps this rank in step with the others."""
        return self.stream.last_is_padding and (is_last or self.stream.num_batches is None)

    def fraction(self, is_last: bool) -> float:
        """Gives epochs trained, with the fraction of the open one (0 where its length is unknown)."""
        state, length = self.state, self.stream.num_windows
        if is_last or not length:
            return float(state.epochs_done + is_last)
        return state.epochs_done + self.batching.windows(state.batches_done) / length

    @property
    def is_interrupted(self) -> bool:
        """Whether the run is being cut short, to go on when it is resumed."""
        request = self.raised.get(Signal.STOP)
        return request is not None and request.interrupt

    def close(self) -> None:
        """Closes the journal and takes what the run left on the optimizer and the model off them."""
        self.journal.close()
        if hasattr(self, "stepper"):
            self.stepper.guard.release()
            self.stepper.clear_gradients()
