"""`python -m trainer_core replay OUTPUT_DIR --from N --steps K SCRIPT [args...]`."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from trainer_core import Trainer
    from trainer_core_replay.report import Report

SAME: Final = 0
DIFFERENT: Final = 1
UNCOMPARED: Final = 2


def replay(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Repeats updates of a run and names the first difference to its journal."""
    parser.usage = "%(prog)s OUTPUT_DIR --from N --steps K SCRIPT [argument ...]"
    parser.add_argument("output_dir", type=Path, help="folder of the run; nothing in it is changed")
    parser.add_argument(
        "--from", dest="from_step", metavar="N", type=_count, required=True,
        help="update of the checkpoint to begin from; 0 for the beginning of the run",
    )  # fmt: skip
    parser.add_argument(
        "--steps", dest="steps", metavar="K", type=_positive, required=True, help="how many updates to repeat"
    )
    parser.add_argument("script", type=Path, help="the script that trained; it ends where it calls train()")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script is to be called with")
    parser.epilog = "Exit code: 0 the same, 1 different, 2 nothing could be compared."
    return _replay


def _replay(given: argparse.Namespace) -> int:
    if not given.script.is_file():
        return _refused(given, f"script: is no file, got {str(given.script)!r}. Name the script that trained.")
    try:
        report = _run(given)
    except Exception as error:
        from trainer_core import TrainerCoreError

        if not isinstance(error, TrainerCoreError):
            traceback.print_exc()
        return _refused(given, str(error) or type(error).__name__)
    if report is None:
        return _refused(given, f"script: ended without calling train(), got {str(given.script)!r}. Name one that does.")
    return SAME if report.is_same else DIFFERENT


class _Done(SystemExit):
    """Ends the script where it would have trained; no `except Exception` of it comes between."""


def _run(given: argparse.Namespace) -> Report | None:
    """Runs the script up to its first `train()`, which becomes the replay, and gives what that found."""
    reports: list[Report] = []

    def instead(trainer: Trainer) -> None:
        from trainer_core_replay.replaying import repeat

        report = repeat(trainer, given.from_step, given.steps, given.output_dir)
        if trainer.is_main_rank:
            print(report, flush=True)
        reports.append(report)

    with _called_as(given.script, given.arguments), _training_is(instead):
        try:
            runpy.run_path(str(given.script), run_name="__main__")
        except SystemExit as ended:
            if not reports and ended.code:
                told = f"script: ended with {ended.code!r} before it trained. Look at what it says."
                raise _ScriptError(told) from None
    return reports[0] if reports else None


class _ScriptError(Exception):
    """The script ended by itself, as it does when its own arguments are wrong."""


@contextmanager
def _called_as(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Gives a script what it finds when Python runs it: its arguments, and its folder first on the path."""
    before, path = sys.argv, sys.path[:]
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(script.resolve().parent)]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path


@contextmanager
def _training_is(instead: Callable[[Trainer], None]) -> Iterator[None]:
    """Lets the first call of any trainer's `train` do something else, in which `train` trains, and end the script."""
    from trainer_core import Trainer

    own, todo = Trainer.train, [instead]

    def train(trainer: Trainer, *positional: Any, **named: Any) -> NoReturn:
        while todo:
            with _trains_by(Trainer, own):
                todo.pop()(trainer)
        raise _Done  # once more, should the script have caught it: it must not train

    with _trains_by(Trainer, train):
        yield


@contextmanager
def _trains_by(kind: type[Trainer], method: Callable[..., Any]) -> Iterator[None]:
    before = kind.train
    kind.train = method  # type: ignore[method-assign] # for a while
    try:
        yield
    finally:
        kind.train = before  # type: ignore[method-assign] # as it was


def _refused(given: argparse.Namespace, problem: str) -> int:
    print(f"{given.prog}: {problem}", file=sys.stderr)
    return UNCOMPARED


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)
