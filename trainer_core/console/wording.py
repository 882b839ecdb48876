"""How the console writes numbers, times and rows of the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["train", "eval", "save", "log", "end"]
"""What a row tells: training, an evaluation, a checkpoint, something of the user's, or the end of the run."""

SHORT_NAMES: Final[Mapping[str, str]] = {"learning_rate": "lr"}
RATES: Final = ("_samples_per_second", "_steps_per_second")
LONGEST_TEXT: Final = 60
"""Characters of a logged value that is text."""

_IN_ASCII: Final = str.maketrans({"×": "x", "…": "...", "·": "-", "–": "-", "✓": "ok:", "✗": "!!", "■": "--"})
_ALWAYS_THERE: Final = frozenset({"epoch", "step"})


class Part(NamedTuple):
    """One value of a row under the name that is shown."""

    name: str
    text: str


def kind_of(logs: Mapping[str, Any]) -> Kind:
    """Tells what a logged row is, from its names."""
    if "loss" in logs:
        return "train"
    if "train_runtime" in logs:
        return "end"
    return "eval" if prefix_of(logs) else "log"


def prefix_of(logs: Mapping[str, Any]) -> str:
    """Gives the prefix of an evaluation's metrics, "eval_" for `eval_runtime`; empty where there is none."""
    for name in logs:
        if name.endswith("_runtime"):
            return name.removesuffix("runtime")
    return ""


def parts_of(logs: Mapping[str, Any]) -> list[Part]:
    """Gives what a row shows besides step and epoch: short names, and no rates of an evaluation."""
    prefix = prefix_of(logs)
    parts = []
    for name, value in logs.items():
        if name in _ALWAYS_THERE or (prefix and name.endswith(RATES)):
            continue
        if prefix and name == f"{prefix}runtime":
            parts.append(Part("in", in_seconds(value)))
        else:
            parts.append(Part(shown_name(name, prefix), shown_value(name, value)))
    return parts


def shown_name(name: str, prefix: str = "") -> str:
    """Gives a metric's name as it is shown: without `prefix`, with blanks."""
    return SHORT_NAMES.get(name) or name.removeprefix(prefix).removeprefix("eval_").replace("_", " ")


def shown_value(name: str, value: object) -> str:
    """Gives a logged value as it is shown."""
    if isinstance(value, float):
        return f"{value:.2e}" if name == "learning_rate" else number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return shortened(printable(str(value)))


def number(value: float) -> str:
    """Gives four significant digits, with an exponent only where it saves room."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= size < 999.95:
        return f"{value:#.4g}"
    return f"{value:,.0f}" if 999.95 <= size < 1e7 else f"{value:.3e}"


def rate(value: float) -> str:
    """Gives a number a second: whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Gives a time as on a clock: 0:09, 12:34, 1:02:03, 2 d 03:04."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_seconds(seconds: float) -> str:
    """Gives a duration with its unit: 0.31 s, 4.2 s, 31 s, 12:34."""
    if seconds >= 99.5:
        return clock(seconds)
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds:.2f} s"


def share(part: float, whole: float) -> str:
    """Gives a share of `whole` in per cent."""
    percent = 100 * part / whole if whole > 0 else 0.0
    return f"{max(percent, 1):.0f}%" if percent >= 0.5 else "<1%" if percent else "0%"


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """Cuts a long text."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def path_text(path: str | Path) -> str:
    """Gives a path from the working directory where it lies below it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)


def printable(text: str) -> str:
    """Gives `text` in one line without control characters."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)


def spelled(text: str, encoding: str | None) -> str:
    """Gives `text` as `encoding` can write it."""
    if text.isascii():
        return text
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_IN_ASCII).encode("ascii", errors="replace").decode("ascii")
    return text


def can_write(text: str, encoding: str | None) -> bool:
    """Tells whether `encoding` has the characters of `text`."""
    return spelled(text, encoding) == text


def joined(parts: Iterable[Part]) -> str:
    """Gives parts in one line: `loss 0.31  lr 1.00e-03`."""
    return "  ".join(f"{name} {text}" for name, text in parts)
