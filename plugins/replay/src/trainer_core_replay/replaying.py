"""A replay: the updates of a run again, in a folder that is gone afterwards.

read       what the journal of each rank recorded of these updates, and whether all of it can be compared
train      from the checkpoint, with the run's own settings but for what acts on the world or ends a run
compare    as the updates come; the first difference ends the training
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from trainer_core import with_settings
from trainer_core_replay.comparing import Difference
from trainer_core_replay.errors import ReplayError
from trainer_core_replay.keeping import kept
from trainer_core_replay.recorded import Recorded, read_recorded
from trainer_core_replay.report import Report, first_difference
from trainer_core_replay.watching import NAME, Watch

if TYPE_CHECKING:
    from trainer_core import Trainer, TrainingArguments

Result = TypeVar("Result")
NAMED_STEPS: Final = 8
"""Updates that are named in an error."""
_QUIET: Final[Mapping[str, object]] = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "resume_from_checkpoint": None,
    "overwrite_output_dir": False,
}
"""Options by which a run writes or deletes checkpoints, and what a replay has them say."""


def replay(trainer: Trainer, from_step: int, steps: int, output_dir: str | Path | None = None) -> Report:
    """Repeats updates of a run and gives how they compare with its journal; the caller's objects are as they were.

    Args:
        trainer: made as that of the run.
        from_step: update of the checkpoint to begin from; 0 for the beginning.
        steps: how many updates to repeat, at most.
        output_dir: folder of the run; None for that of the settings.

    Raises:
        ReplayError: nothing can be compared.
    """
    if from_step == 0 and trainer.model_init is None and trainer.state.global_step:
        raise ReplayError(
            f"from_step: the model was trained since the run began, got 0 after {trainer.state.global_step} updates. "
            f"Pass model_init, make the trainer anew, or replay from a checkpoint."
        )
    with kept(trainer):
        return repeat(trainer, from_step, steps, output_dir)


def repeat(trainer: Trainer, from_step: int, steps: int, output_dir: str | Path | None = None) -> Report:
    """Does what `replay` does, and leaves model and optimizer as they are then."""
    folder = Path(trainer.args.output_dir if output_dir is None else output_dir)
    recorded = _agreed(trainer, lambda: _recorded(trainer, folder, from_step, steps))
    of_all = trainer.ranks.gather_objects(max((step for step in recorded if step > from_step), default=0))
    watch = Watch(recorded, from_step, max(of_all))
    with _scratch(trainer) as scratch:
        ended = _train(trainer, watch, scratch, folder / f"checkpoint-{from_step}" if from_step else False)
        found = trainer.ranks.gather_objects((watch.rows, [*_notes(recorded)]))
    rows = tuple(row for of_rank, _ in found for row in of_rank)
    notes = tuple(dict.fromkeys(note for _, of_rank in found for note in of_rank))
    difference = first_difference(rows) or ended
    return Report(str(folder), from_step, watch.last_step, rows, difference, notes)


def _train(trainer: Trainer, watch: Watch, scratch: Path, source: Path | bool) -> Difference | None:
    """Trains; gives the difference that lies in a run that ended too soon."""
    with with_settings(trainer, settings_of(trainer, scratch), [watch]):
        trainer.train(resume_from_checkpoint=source)
        request, step = trainer.stop_request, trainer.state.global_step
        is_own = request is None or request.by.partition(" ")[0] == NAME
        if trainer.outcome == "interrupted" and request is not None and request.by.startswith("SIG"):
            raise KeyboardInterrupt(f"{request.by}: {request.why}")
    if step >= watch.last_step or is_own or request is None:
        return None
    return Difference(step + 1, "end", "it was done", f"the run ends before it, {request.by}: {request.why}")


def settings_of(trainer: Trainer, output_dir: Path) -> TrainingArguments:
    """Gives the settings of a replay: those of the run, without what acts on the world outside or ends a run.

    These are the plugins whose class says `fires_in_replay = False`, and the saving of checkpoints.
    """
    args, members = trainer.args, trainer.bus.members
    changes: dict[str, object] = {
        name: None
        for name in args.sections
        if name in members and not getattr(members[name].plugin, "fires_in_replay", True)
    }
    changes |= {name: value for name, value in _QUIET.items() if getattr(args, name, None)}
    best = ("metric_for_best_model", "greater_is_better")  # they may follow from load_best_model_at_end
    changes |= {name: getattr(args, name) for name in best if getattr(args, name) is not None}
    return args.replace(**changes, output_dir=str(output_dir))


def _recorded(trainer: Trainer, folder: Path, from_step: int, steps: int) -> dict[int, Recorded]:
    """Gives what this rank's journal holds of the updates that are to be repeated.

    Raises:
        ReplayError: it cannot be compared.
    """
    _check_numbers(from_step, steps)
    if not folder.is_dir():
        raise ReplayError(f"output_dir: is no folder, got {str(folder)!r}. Name that of a run.")
    if from_step and not (folder / f"checkpoint-{from_step}").is_dir():
        there = sorted(int(p.name[11:]) for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal())
        known = f"Begin from one of {_listed(there)}, or from 0" if there else "Begin from 0"
        raise ReplayError(f"from_step: {folder} has no checkpoint of this update, got {from_step}. {known}.")
    path = folder / trainer.journal_path.name
    known_steps = read_recorded(path)
    span = range(from_step + 1, from_step + steps + 1)
    if not any(step in span for step in known_steps):
        raise ReplayError(_nothing_there(path, sorted(step for step in known_steps if step), from_step, span))
    wanted = {step: one for step, one in known_steps.items() if step == from_step or step in span}
    world_size = trainer.ranks.world_size
    if wrong := next((one for one in wanted.values() if one.step in span and one.ranks != world_size), None):
        raise ReplayError(
            f"ranks: update {wrong.step} was done by {wrong.ranks} process(es), got {world_size}. Start the replay as "
            f"the run was started: torchrun --nproc_per_node {wrong.ranks} -m trainer_core replay …"
        )
    return wanted


def _check_numbers(from_step: object, steps: object) -> None:
    for name, value, least in (("from_step", from_step, 0), ("steps", steps, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ReplayError(f"{name}: must be a whole number from {least}, got {value!r}. Give a number of updates.")


def _nothing_there(path: Path, known: list[int], from_step: int, span: range) -> str:
    what = f"{path}: holds no digests of updates {span.start} to {span[-1]}"
    if not known:
        return f"{what}, nor of any other. Train with digest_steps=10; what was not recorded cannot be compared."
    later = next((step for step in known if step > from_step), None)
    if later is None:
        return f"{what}, the last of which it does is {known[-1]}. Begin from an earlier checkpoint."
    return f"{what}, the next of which it does is {later}. Repeat at least {later - from_step}."


def _listed(steps: list[int]) -> str:
    named = ", ".join(map(str, steps[-NAMED_STEPS:]))
    return f"…, {named}" if len(steps) > NAMED_STEPS else named


def _notes(recorded: Mapping[int, Recorded]) -> Iterator[str]:
    for step in sorted(recorded):
        yield from recorded[step].disagreements()


@contextmanager
def _scratch(trainer: Trainer) -> Iterator[Path]:
    """Gives a folder, the same on all ranks, that is gone afterwards."""
    made = tempfile.mkdtemp(prefix="trainer-core-replay-") if trainer.is_main_rank else None
    folder = Path(trainer.ranks.from_main(made))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _agreed(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Gives this rank's result when every rank has one.

    Raises:
        ReplayError: a rank has none; on every rank.
    """
    result: Any = None
    problem = ""
    try:
        result = work()
    except ReplayError as error:
        problem = str(error)
    for rank, told in enumerate(trainer.ranks.gather_objects(problem)):
        if told:
            raise ReplayError(f"rank {rank}: {told}" if rank else told)
    answer: Result = result
    return answer
