"""`python -m trainer_core checkpoints OUTPUT_DIR`: lists, verifies, compares and deletes the checkpoints of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer_core_checkpointing.inventory import Entry

FOUND, MISUSE = 1, 2
_MAX_ROWS: Final = 200
"""Differences that are told one by one."""


def checkpoints(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Lists, verifies, compares and deletes the checkpoints of a run; but for --delete it only reads."""
    parser.epilog = "Exit code: 0; 1 where one is not valid, two differ or nothing is deleted; 2 for misuse."
    parser.add_argument("output_dir", type=Path, help="folder of the run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="read every file of every checkpoint to its end")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="tell what differs between two, given as steps or folders"
    )
    what.add_argument("--delete", nargs="+", metavar="STEP", type=_step, help="delete those of these steps")
    parser.add_argument("--force", action="store_true", help="with --delete: the newest valid one and the best as well")
    return _run


def _run(given: argparse.Namespace) -> int:
    from trainer_core import TrainerCoreError

    if not given.output_dir.is_dir():
        return _misused(given, f"output_dir: is no folder, got {str(given.output_dir)!r}. Name that of a run.")
    if given.force and not given.delete:
        return _misused(given, "--force: goes with --delete alone. Leave it out.")
    try:
        if given.compare:
            return _compare(given)
        return _delete(given) if given.delete else _list(given)
    except TrainerCoreError as error:
        return _misused(given, str(error))


def _list(given: argparse.Namespace) -> int:
    from trainer_core_checkpointing import inventory, table

    found = inventory.entries(given.output_dir, verifies=given.verify)
    if not found:
        print(f"{given.output_dir}: has no checkpoint.")
        return 0
    names = ("step", "run", "saved at", "size", "metric", "state")
    table.show(names, [_row(entry, verified=given.verify) for entry in found])
    invalid = sum(bool(entry.problem) for entry in found)
    if given.verify:
        print(f"{len(found) - invalid} valid, {invalid} not.")
    return FOUND if invalid and given.verify else 0


def _row(entry: Entry, *, verified: bool) -> tuple[str, ...]:
    from trainer_core import in_bytes
    from trainer_core_checkpointing import folder

    step, manifest = str(folder.step_of(entry.path)), entry.manifest
    if manifest is None:
        return step, "", "", "", "", entry.problem
    metric = "" if entry.metric is None else f"{entry.metric[0]} {entry.metric[1]:.6g}"
    told = f"{metric} (best)".strip() if entry.is_best else metric
    holds = "" if manifest.is_resumable else ", model alone"
    state = entry.problem or ("valid" if verified else "whole") + holds
    return step, manifest.run, manifest.saved_at, in_bytes(entry.num_bytes), told, state


def _compare(given: argparse.Namespace) -> int:
    from trainer_core_checkpointing import table
    from trainer_core_checkpointing.comparison import compare

    one, other = (_folder(given.output_dir, name) for name in given.compare)
    result = compare(one, other)
    rows = [(difference.part, difference.name, difference.what) for difference in [*result.state, *result.described]]
    if rows:
        table.show(("where", "name", f"{one.name} / {other.name}"), rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        print(f"and {len(rows) - _MAX_ROWS} more")
    print(f"{result.same} tensors and values of the state are the same, {len(result.state)} differ.")
    return FOUND if result.state else 0


def _folder(output_dir: Path, name: str) -> Path:
    """Gives the checkpoint that a step, a name in the output folder or a path means."""
    from trainer_core import CheckpointError

    tried = [output_dir / f"checkpoint-{name}", output_dir / name, Path(name)]
    found = next((path for path in tried if path.is_dir()), None)
    if found is None:
        raise CheckpointError(f"--compare: there is no such checkpoint, got {name!r}. Give a step or a folder.")
    return found


def _delete(given: argparse.Namespace) -> int:
    from trainer_core import owned
    from trainer_core_checkpointing import folder, inventory

    with owned(given.output_dir):
        found = {folder.step_of(entry.path): entry for entry in inventory.entries(given.output_dir, verifies=False)}
        wanted = list(dict.fromkeys(given.delete))
        refusals = [text for step in wanted if (text := _refusal(step, found, is_forced=given.force))]
        for text in refusals:
            print(f"{given.prog}: {text}", file=sys.stderr)
        if refusals:
            print(f"{given.prog}: nothing was deleted.", file=sys.stderr)
            return FOUND
        return max([_deleted(given, found[step].path) for step in wanted])


def _refusal(step: int, found: dict[int, Entry], *, is_forced: bool) -> str:
    """Says why a checkpoint is not deleted; nothing where it may be."""
    from trainer_core_checkpointing import inventory

    entry = found.get(step)
    if entry is None:
        return f"--delete: there is no checkpoint of this step, got {step}. List them first."
    if entry.manifest is None:
        return (
            f"--delete: {entry.path.name} is no checkpoint of ours, got {step}. Remove it by hand if nobody needs it."
        )
    if is_forced:
        return ""
    newest = inventory.newest_valid(list(found.values()))
    if newest is not None and newest.path == entry.path:
        return f"--delete: a run goes on from this one, the newest valid, got {step}. Add --force to delete it."
    return f"--delete: the best model is in this one, got {step}. Add --force to delete it." if entry.is_best else ""


def _deleted(given: argparse.Namespace, path: Path) -> int:
    from trainer_core_checkpointing import folder

    folder.delete(path)
    if path.exists() or path.is_symlink():
        print(f"{given.prog}: {path}: could not be deleted.", file=sys.stderr)
        return FOUND
    print(f"deleted {path}")
    return 0


def _misused(given: argparse.Namespace, problem: str) -> int:
    print(f"{given.prog}: {problem}", file=sys.stderr)
    return MISUSE


def _step(text: str) -> int:
    digits = text.removeprefix("checkpoint-")
    if not (digits.isascii() and digits.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a step, a whole number from 0, got {text!r}")
    return int(digits)
