"""The crash matrix: a run of a plugin is cut at every call that changes its disk, and must end as if nobody had cut it.

    from trainer_core.testing.crash import crash_matrix

    def test_it_survives_a_crash_anywhere():
        crash_matrix(Patience, settings={"evaluations": 2})

A fork server starts children that have imported everything; the kernel (seccomp) asks a supervisor before each of their
calls that writes, renames, links, unlinks or flushes something in the output folder, and the supervisor kills the child
there, or fails the call. What a power cut leaves is made from the recorded calls. Linux only.
"""

import sys

if sys.platform != "linux":
    raise ImportError(f"{__name__}: works on Linux only, got {sys.platform}. Skip these tests here.")

from trainer_core.testing.crash.matrix import KINDS, crash_matrix
from trainer_core.testing.crash.rounds import Figures

__all__ = ["KINDS", "Figures", "crash_matrix"]
