"""The errors of trainer_core, one tree.

    TrainerCoreError
    ├── SettingsError        (ValueError)    settings that are wrong or contradict each other; every mistake at once
    ├── TransitionError      (RuntimeError)  an exit that the table of phases does not have
    ├── PluginError          (RuntimeError)  a plugin that is broken, misspelt, doubled or in a circle
    ├── DataError            (ValueError)    a dataset, collator or batch that cannot be trained on
    ├── ModelError           (ValueError)    a model that gives no loss, or none at all
    ├── NonFiniteLossError   (RuntimeError)  a loss or a gradient that is NaN or infinite
    ├── CheckpointError      (RuntimeError)  a checkpoint that is missing, damaged or of another run
    │   └── InvalidCheckpointError           a file of it is not what it must be; another checkpoint may serve
    ├── OwnershipError       (RuntimeError)  an output folder that another run owns
    └── DistributedError     (RuntimeError)  processes that do not see each other

Messages read *where: what is wrong, got value. What to do.* An error of the user's own code is never replaced:
it is raised as it is, with a note of where in the run it happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from trainer_core.settings.secrecy import mask_text


class TrainerCoreError(Exception):
    """Root of every error that this library raises on its own account."""


class SettingsError(TrainerCoreError, ValueError):
    """Settings that are wrong; `problems` holds one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = [mask_text(problem) for problem in problems]
        head = "1 setting is wrong" if len(self.problems) == 1 else f"{len(self.problems)} settings are wrong"
        super().__init__("\n".join([f"{head}:", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[SettingsError], tuple[list[str]]]:
        return type(self), (self.problems,)


class TransitionError(TrainerCoreError, RuntimeError):
    """A walk that the table of phases does not allow; the phase is left as it was."""


class PluginError(TrainerCoreError, RuntimeError):
    """A plugin that cannot be loaded, ordered or called as its hooks promise."""


class DataError(TrainerCoreError, ValueError):
    """Data that cannot be trained or evaluated on."""


class ModelError(TrainerCoreError, ValueError):
    """A model that cannot be trained as it is."""


class NonFiniteLossError(TrainerCoreError, RuntimeError):
    """A loss or a gradient that is NaN or infinite, found before the weights were touched."""


class CheckpointError(TrainerCoreError, RuntimeError):
    """A checkpoint that is missing, incomplete, damaged or of another model."""


class InvalidCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, additional, changed or holds what it cannot; `file` says which."""

    def __init__(self, file: Path, what: str, remedy: str = "Use another checkpoint.") -> None:
        self.file, self.what, self.remedy = file, printable(what), remedy
        super().__init__(f"{printable(file)}: {self.what}. {remedy}")

    def __reduce__(self) -> tuple[type[InvalidCheckpointError], tuple[Path, str, str]]:
        return type(self), (self.file, self.what, self.remedy)


class OwnershipError(TrainerCoreError, RuntimeError):
    """An output folder that another run owns."""


class DistributedError(TrainerCoreError, RuntimeError):
    """Processes that were launched together and do not form one run."""


def printable(value: object, limit: int = 600) -> str:
    """Gives the text of a name that anybody may have chosen: control characters escaped, a long one cut."""
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(value)[: 4 * limit])
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Gives ` Did you mean 'x'?` for a near miss among `known`, else the empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
