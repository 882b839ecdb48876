"""The plugin: when a checkpoint is asked for, and how the run's questions about checkpoints are answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from trainer_core import Cadence, Phase, Signal, best_metric_name, hookimpl, interval
from trainer_core_checkpointing import disk, folder, random_states, reading
from trainer_core_checkpointing.agreement import agreed, on_main
from trainer_core_checkpointing.closing import read_mark, remove_mark, write_mark
from trainer_core_checkpointing.saving import Saver
from trainer_core_checkpointing.settings import CheckpointingSettings
from trainer_core_checkpointing.worldsize import read_counters
from trainer_core_checkpointing.writing import Lineage, Writer

if TYPE_CHECKING:
    from trainer_core import Plan, Saving, Section, Trainer

logger = logging.getLogger("trainer_core.checkpointing")

_KEPT: Final = (
    "%s: holds %d checkpoint(s) of an earlier run, the newest is %s. They are kept, except where one of this run has "
    "the same step; resume_from_checkpoint=True goes on from there until this run has saved."
)
_OVERWRITTEN: Final = (
    "%s: holds %d checkpoint(s) of an earlier run, the newest is %s. They are deleted when this run has saved, as "
    "overwrite_output_dir says."
)


class Checkpointing:
    """Writes checkpoints, reads them back, and keeps the best and the newest."""

    settings_type: ClassVar[type[Section]] = CheckpointingSettings

    def __init__(self, settings: CheckpointingSettings) -> None:
        self.settings = settings
        self._cadence = Cadence("no")
        self._max_steps = 0
        self._saver: Saver | None = None
        self._notes: tuple[tuple[str, str], ...] = ()
        self._lineage: Lineage | None = None
        self._to_restore: dict[str, Any] | None = None
        self._has_opened = self._has_evaluated = False
        self._found: reading.Found | None = None

    # When

    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Adds the saves and the disk they take."""
        settings = self.settings
        planned: list[Sequence[int] | None] = []
        if settings.strategy in ("steps", "epoch"):
            by = "save_steps" if settings.strategy == "steps" else "save_strategy"
            planned.append(self._cadence_of(plan.max_steps).steps(plan.max_steps, plan.updates_per_epoch))
            plan.schedule("save", by, planned[0])
        if settings.saves_best:
            planned += [entry.steps for entry in plan.scheduled if entry.what == "evaluation"]
            by = "load_best_model_at_end" if settings.load_best_model_at_end else "save_strategy"
            plan.schedule("save", by, None, note="at each evaluation that is a new best")
        self._plan_disk(trainer, plan, planned)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Resolves when saves are due, and clears what saves that were cut short left behind."""
        settings, state, output_dir = self.settings, trainer.state, Path(trainer.args.output_dir)
        self._max_steps = state.max_steps
        self._cadence = self._cadence_of(state.max_steps)
        state.save_steps = self._cadence.every
        if trainer.is_main_rank:
            folder.tidy(output_dir)
            remove_mark(output_dir)
        overwrites = settings.overwrite_output_dir
        lineage = self._lineage or on_main(trainer, lambda: _new_lineage(output_dir, overwrites=overwrites))
        writer = Writer(trainer, output_dir, lineage, only_model=settings.only_model)
        self._saver = Saver(trainer, settings, writer)
        if trainer.is_main_rank and trainer.resumed_from is not None:  # the last run may have been killed before this
            best = [] if state.best_model_checkpoint is None else [Path(state.best_model_checkpoint).name]
            folder.rotate(output_dir, settings.total_limit, lineage.run, [trainer.resumed_from.name, *best])

    def on_step_end(self, trainer: Trainer) -> None:
        """Lands a save that is in flight, and asks for one that is due after this update."""
        assert self._saver is not None
        if self._saver.flight is not None:
            self._saver.poll()
        step = trainer.state.global_step
        if self._cadence.is_due(step, self._max_steps):
            trainer.request(Signal.SAVE, by="save_steps", why=self._cadence.reason(step, self._max_steps))

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Asks for a save at the end of an epoch, and at the end of a run that was stopped early."""
        state = trainer.state
        if self.settings.strategy == "epoch":
            trainer.request(Signal.SAVE, by="save_strategy", why=f"the end of epoch {state.epoch:g}")
        elif self.settings.strategy == "steps" and state.stopped_by is not None:
            why = f"{state.stopped_by['by']} ends the run after step {state.global_step}"
            trainer.request(Signal.SAVE, by="save_strategy", why=why)

    def on_new_best(self, trainer: Trainer) -> None:
        """Asks for a save of the best model so far, unless this update was saved before it was evaluated."""
        state = trainer.state
        is_saved = state.last_save_step == state.global_step
        is_there = is_saved and (self._saver is None or self._saver.flight is None)
        path = Path(trainer.args.output_dir) / folder.name_of(state.global_step)
        state.best_model_checkpoint = str(path) if is_there else None
        if self.settings.saves_best and not is_saved:
            by = "load_best_model_at_end" if self.settings.load_best_model_at_end else "save_strategy"
            value = f"{state.best_metric:.6g}"
            trainer.request(Signal.SAVE, by=by, why=f"new best {best_metric_name(trainer)} {value}")

    # What

    def write_checkpoint(self, trainer: Trainer) -> Path | Saving:
        """Writes a checkpoint, at once or behind the training; saving draws no random number of the run."""
        assert self._saver is not None
        states = random_states.capture(trainer.ranks.device)
        try:
            return self._saver.save(states)
        finally:
            random_states.restore(states, trainer.ranks.device)

    def closing_notes(self) -> Iterator[tuple[str, str]]:
        """Gives (label, text) for the summary of the run."""
        yield from self._notes if self._saver is None else self._saver.account.notes()

    def foresee_checkpoint(self, trainer: Trainer, source: str | bool) -> Mapping[str, Any] | None:
        """Finds and checks the checkpoint to resume from; gives its counters, or None where nothing was saved yet."""
        output_dir = Path(trainer.args.output_dir)
        if trainer.is_main_rank:
            folder.tidy(output_dir)
        falls_back = self.settings.on_invalid_checkpoint == "fall_back"
        found = self._found = on_main(trainer, lambda: reading.find(output_dir, source, falls_back=falls_back))
        if found is None:
            return None
        reading.tell(trainer, found.passed_over if trainer.is_main_rank else [])
        return agreed(trainer, lambda: read_counters(found.path, found.manifest))

    def read_checkpoint(self, trainer: Trainer, source: str | bool) -> Path | None:
        """Loads the checkpoint that was found; the random states come last. Gives None where nothing was saved yet."""
        output_dir, found = Path(trainer.args.output_dir), self._found
        if found is None:
            return None
        path, manifest = found.path, found.manifest
        self._to_restore = reading.load(trainer, found)
        self._lineage = on_main(trainer, lambda: _branch(output_dir, path, Lineage(manifest.run, manifest.generation)))
        if path.resolve().parent != output_dir.resolve():
            trainer.state.last_save_step = -1  # this folder has no checkpoint of the step
        else:
            trainer.finished = on_main(trainer, lambda: read_mark(output_dir, manifest))
        random_states.restore(self._to_restore, trainer.ranks.device)
        return path

    def read_best_model(self, trainer: Trainer) -> Path | None:
        """Brings back the best model, if the settings want that."""
        if not self.settings.load_best_model_at_end:
            return None
        falls_back = self.settings.on_invalid_checkpoint == "fall_back"
        return reading.load_best(trainer, Path(trainer.args.output_dir), falls_back=falls_back)

    @hookimpl(tryfirst=True)
    def on_phase(self, trainer: Trainer, phase: Phase) -> None:
        """Waits for a save in flight before the next one and the end; sets the saved random states where a run goes on.

        Between loading and that moment hooks have fired that the uninterrupted run did not fire there: the beginning
        of training and, in an open epoch, that of the epoch. An evaluation that the saved run owed is made before it
        goes on; what that draws counts.
        """
        if phase is Phase.SAVE and self._saver is not None:
            self._saver.make_way()
        if phase is Phase.STOP and self._saver is not None:
            self._saver.finish()
        if self._to_restore is None:
            return
        if self._has_evaluated:
            self._to_restore = random_states.capture(trainer.ranks.device)
        self._has_evaluated = phase is Phase.EVAL
        has_opened, self._has_opened = self._has_opened, phase is Phase.EPOCH
        if phase is Phase.STEP or not has_opened:
            random_states.restore(self._to_restore, trainer.ranks.device)
        if has_opened or not trainer.state.epoch_is_open:
            self._to_restore = None

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        """Marks a run that has ended as finished, where its last update is in a checkpoint."""
        state = trainer.state
        if trainer.outcome == "interrupted" or state.last_save_step != state.global_step or self._saver is None:
            return
        lineage, rows = self._saver.writer.template, self._saver.writer.history.rows
        if trainer.is_main_rank and not self.settings.only_model:
            write_mark(trainer, lineage.run, lineage.generation, rows)

    def on_exception(self, error: BaseException) -> None:
        """Gives up what is in flight when the run is to stop at once."""
        if isinstance(error, KeyboardInterrupt) and self._saver is not None:
            self._saver.give_up()

    def on_teardown(self) -> None:
        """Ends what is in flight, and forgets the run."""
        if self._saver is not None:
            self._saver.close()
            self._notes = tuple(self._saver.account.notes())
        self._saver, self._lineage, self._to_restore = None, None, None
        self._has_opened = self._has_evaluated = False
        self._found = None

    def _cadence_of(self, max_steps: int) -> Cadence:
        settings = self.settings
        every = interval(settings.steps, max_steps) if settings.strategy == "steps" else 0
        return Cadence(settings.strategy, every)

    def _plan_disk(self, trainer: Trainer, plan: Plan, planned: list[Sequence[int] | None]) -> None:
        """Adds what the kept checkpoints take at most, of `planned` moments; None among them are not known."""
        settings = self.settings
        known = [steps for steps in planned if steps is not None]
        if len(known) == len(planned):
            number = len(set().union(*known))
        elif settings.total_limit is not None:
            number = settings.total_limit + 2
        else:
            plan.unknown.append("the disk for checkpoints: how many there will be is not known; set save_total_limit")
            return
        if number:
            kept = disk.kept_at_most(number, settings.total_limit, has_best=settings.saves_best)
            plan.disk("checkpoints", kept * disk.checkpoint_bytes(trainer, only_model=settings.only_model))


def _new_lineage(output_dir: Path, *, overwrites: bool) -> Lineage:
    """Gives the lineage of a run that begins anew: newer than every checkpoint in the folder."""
    there = folder.complete(output_dir)
    if there:
        told = _OVERWRITTEN if overwrites else _KEPT
        logger.warning(told, output_dir, len(there), there[0][0].name)
    return Lineage(uuid4().hex[:12], max((manifest.generation for _, manifest in there), default=-1) + 1)


def _branch(output_dir: Path, path: Path, lineage: Lineage) -> Lineage:
    """Gives the lineage of a resumed run: newer than checkpoints that lie behind the one it goes on from."""
    there = folder.complete(output_dir)
    step = folder.step_of(path) if path.name.startswith("checkpoint-") else 0
    if any(manifest.order > (lineage.generation, step) for _, manifest in there):
        lineage.generation = max(manifest.generation for _, manifest in there) + 1
    return lineage
