"""The watch over the ranks of one run: begun when it starts, ended when it ends."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trainer_core.connections import cut, regroup
from trainer_core.errors import DistributedError
from trainer_core.phases import AT_WORK
from trainer_core.watch import Watch
from trainer_core.whereabouts import whereabouts

if TYPE_CHECKING:
    from trainer_core.loop import Loop

logger = logging.getLogger("trainer_core.watching")


def begin_watch(loop: Loop) -> Watch | None:
    """Gives the watch over the ranks of a run, on all of them together; None where there is one, or they cannot."""
    ranks = loop.ranks
    if ranks.world_size == 1:
        return None
    watch = Watch(ranks.rank, float(loop.args.ddp_heartbeat_timeout), _looker(loop), cut)
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    port, token = ranks.from_main((watch.open(host), secrets.token_hex(16)) if ranks.is_main else None)
    problem = "" if ranks.is_main else _join(watch, host, port, token)
    watch.start(token)
    problems = [text for text in ranks.gather_objects(problem) if text]
    if not problems:
        return watch
    watch.close()
    if ranks.is_main:
        told = "ddp_heartbeat_timeout: ranks do not watch each other, one cannot reach rank 0 at %s:%d (%s)."
        logger.warning(told, host, port, problems[0])
    return None


def lost_rank(watch: Watch | None, error: BaseException) -> DistributedError | None:
    """Gives the error that names the rank whose loss broke a collective of this one with `error`; else None."""
    if watch is None or not _is_of_collective(error):
        return None
    return watch.explain(str(error).splitlines()[0][:300])


def reunite(loop: Loop, watch: Watch | None, error: BaseException) -> None:
    """Tells the others of an error of this rank, and has all ranks meet to save what they have in common.

    They meet where a rank failed and all of them live: in a new process group, for in the old one some wait for others.
    """
    if watch is None or loop.agreement.is_failing:
        return
    is_together = isinstance(error, Exception) and loop.phase in AT_WORK
    watch.fail(f"{type(error).__name__}: {error}"[:1000], is_together=is_together)
    if not is_together or not watch.is_together:
        return
    try:
        regroup(loop.args.ddp_heartbeat_timeout, loop.args.ddp_timeout)
        steps = loop.ranks.gather_objects(None if loop.stepper.is_torn else loop.state.global_step)
    except Exception as problem:  # the run ends with its own error
        error.add_note(f"the ranks could not meet to save: {problem}")
        return
    loop.agreement.is_failing = len(set(steps)) == 1 and steps[0] is not None
    if not loop.agreement.is_failing:
        error.add_note(f"the ranks have no step boundary in common: after steps {steps}")


def _join(watch: Watch, host: str, port: int, token: str) -> str:
    try:
        watch.join(host, port, token)
    except OSError as error:
        return str(error)
    return ""


def _looker(loop: Loop) -> Callable[[], dict[str, Any]]:
    thread, process, host = threading.get_ident(), os.getpid(), socket.gethostname()

    def look() -> dict[str, Any]:
        where, waits = whereabouts(thread)
        step, phase = loop.state.global_step, loop.phase.name
        return {"phase": phase, "step": step, "where": where, "waits": waits, "pid": process, "host": host}

    return look


def _is_of_collective(error: BaseException) -> bool:
    """Tells whether ranks lost each other: torch has an error for NCCL and the store, gloo names its own file."""
    if isinstance(error, DistributedError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
