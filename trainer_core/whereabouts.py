"""Where in the code a thread is, seen from another one."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Final

_LIBRARIES: Final = tuple(
    {os.path.join(sysconfig.get_paths()[name], "") for name in ("stdlib", "purelib", "platlib")}
    | {str(Path(__file__).parent) + os.sep}
)
_WAITING: Final = (os.path.join("torch", "distributed", ""), os.path.join("torch", "autograd", "graph.py"))
"""Files of torch in which a rank waits for the others: for collectives, and for gradients in a backward."""


def whereabouts(thread: int) -> tuple[str, bool]:
    """Gives file, line and function where `thread` is, in the user's code if it is there; and whether it waits.

    A thread waits where it has called torch to talk with other ranks.
    """
    frames = _frames(sys._current_frames().get(thread))
    if not frames:
        return "", False
    own = next((frame for frame in frames if not frame.f_code.co_filename.startswith(_LIBRARIES)), frames[0])
    waits = any(part in frame.f_code.co_filename for frame in frames[:8] for part in _WAITING)
    return f"{own.f_code.co_filename}:{own.f_lineno} in {own.f_code.co_name}", waits


def _frames(frame: FrameType | None) -> list[FrameType]:
    """Gives the frames of a stack, innermost first."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found
