"""A save that fails: how an error of the disk is told from others, and made one decision of all ranks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from trainer_core import CheckpointError
from trainer_core_checkpointing.agreement import agreed

if TYPE_CHECKING:
    from trainer_core import Trainer

Result = TypeVar("Result")

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class WriteError(CheckpointError):
    """A file of a checkpoint could not be written, for a cause that lies in the disk.

    Attributes:
        is_full: the disk, or the user's share of it.
    """

    def __init__(self, problem: str, *, is_full: bool = False) -> None:
        super().__init__(problem)
        self.is_full = is_full


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an error of the disk into one that names the file; any other is raised as it is."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        name = Path(error.filename or path).name
        problem = f"could not be written, {name}: {error.strerror or error}"
        raise WriteError(problem, is_full=error.errno in _FULL) from error
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        problem = f"could not be written, {path.name}: {error}"
        raise WriteError(problem, is_full=f"(os error {errno.ENOSPC})" in str(error)) from error


def _is_of_the_disk(error: Exception) -> bool:
    """Tells whether a library's own error says that a call to the disk failed, as that of safetensors does."""
    return type(error).__name__ == "SafetensorError" and "os error" in str(error)


def together(trainer: Trainer, work: Callable[[], Result]) -> list[Result]:
    """Does this rank's share of a save, and gives what it was on each rank.

    Raises:
        WriteError: on every rank, where the disk failed one of them; the first of them is told.
    """
    failure: WriteError | None = None

    def share() -> Result | None:
        nonlocal failure
        try:
            return work()
        except WriteError as error:
            failure = error
            return None

    result = agreed(trainer, share)
    problem = None if failure is None else (str(failure), failure.is_full)
    told = trainer.ranks.gather_objects((result, problem))
    for rank, (_, found) in enumerate(told):
        if found is not None:
            of_rank = f"rank {rank}: " if trainer.ranks.world_size > 1 else ""
            raise WriteError(of_rank + found[0], is_full=any(one[1] for _, one in told if one)) from failure
    return [one for one, _ in told]
