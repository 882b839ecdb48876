"""The plugin: when a checkpoint is asked for, and how the run's questions about checkpoints are answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from trainer_core import Cadence, Phase, Signal, best_metric_name, hookimpl, interval
from trainer_core_checkpointing import disk, folder, random_states, reading
from trainer_core_checkpointing.agreement import on_main
from trainer_core_checkpointing.settings import CheckpointingSettings
from trainer_core_checkpointing.writing import Lineage, Writer

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer

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
        self._writer: Writer | None = None
        self._lineage: Lineage | None = None
        self._to_restore: dict[str, Any] | None = None
        self._has_opened = False

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
        if settings.strategy != "steps" and trainer.args.sources.get("save_steps", "default") != "default":
            logger.warning("save_steps: is read with save_strategy='steps' alone, which is %r.", settings.strategy)
        if trainer.is_main_rank:
            folder.tidy(output_dir)
        overwrites = settings.overwrite_output_dir
        lineage = self._lineage or on_main(trainer, lambda: _new_lineage(output_dir, overwrites=overwrites))
        self._writer = Writer(trainer, output_dir, lineage, only_model=settings.only_model)

    def on_step_end(self, trainer: Trainer) -> None:
        """Asks for a save when one is due after this update."""
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
        state.best_model_checkpoint = self._path_of(trainer, folder.name_of(state.global_step)) if is_saved else None
        if self.settings.saves_best and not is_saved:
            by = "load_best_model_at_end" if self.settings.load_best_model_at_end else "save_strategy"
            value = f"{state.best_metric:.6g}"
            trainer.request(Signal.SAVE, by=by, why=f"new best {best_metric_name(trainer)} {value}")

    # What

    def write_checkpoint(self, trainer: Trainer) -> Path:
        """Writes a checkpoint and then deletes those beyond the limit; saving draws no random number of the run."""
        assert self._writer is not None
        state, device = trainer.state, trainer.ranks.device
        states = random_states.capture(device)
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = self._path_of(trainer, folder.name_of(state.global_step))
        try:
            target = self._writer.write(states)
        finally:
            random_states.restore(states, device)
        if trainer.is_main_rank:
            best = [Path(state.best_model_checkpoint).name] if state.best_model_checkpoint is not None else []
            if self.settings.overwrite_output_dir:
                folder.delete_of_others(target.parent, self._writer.template.run)
            folder.rotate(target.parent, self.settings.total_limit, self._writer.template.run, best)
        return target

    @staticmethod
    def _path_of(trainer: Trainer, name: str) -> str:
        return str(Path(trainer.args.output_dir) / name)

    def read_checkpoint(self, trainer: Trainer, source: str | bool) -> Path | None:
        """Finds, checks and loads a checkpoint; the random states come last. Gives None where nothing was saved yet."""
        output_dir = Path(trainer.args.output_dir)
        if trainer.is_main_rank:
            folder.tidy(output_dir)
        path = on_main(trainer, lambda: reading.find(output_dir, source))
        if path is None:
            return None
        manifest, self._to_restore = reading.load(trainer, path)
        self._lineage = on_main(trainer, lambda: _branch(output_dir, path, Lineage(manifest.run, manifest.generation)))
        if path.resolve().parent != output_dir.resolve():
            trainer.state.last_save_step = -1  # this folder has no checkpoint of the step
        random_states.restore(self._to_restore, trainer.ranks.device)
        return path

    def read_best_model(self, trainer: Trainer) -> Path | None:
        """Brings back the best model, if the settings want that."""
        if not self.settings.load_best_model_at_end:
            return None
        return reading.load_best(trainer, Path(trainer.args.output_dir))

    @hookimpl(tryfirst=True)
    def on_phase(self, trainer: Trainer, phase: Phase) -> None:
        """Sets the saved random states again where the saved run went on.

        Between loading and that moment hooks have fired that the uninterrupted run did not fire there: the beginning
        of training and, in an open epoch, that of the epoch.
        """
        if self._to_restore is None:
            return
        has_opened, self._has_opened = self._has_opened, phase is Phase.EPOCH
        if phase is Phase.STEP or not has_opened:
            random_states.restore(self._to_restore, trainer.ranks.device)
        if has_opened or not trainer.state.epoch_is_open:
            self._to_restore = None

    def on_teardown(self) -> None:
        """Forgets the run."""
        self._writer, self._lineage, self._to_restore, self._has_opened = None, None, None, False

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
