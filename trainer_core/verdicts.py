"""What is said of a rank that is lost, from what it told of itself last."""

from __future__ import annotations

from typing import Any


def doing(about: dict[str, Any]) -> str:
    """Gives phase, step and line of code of a rank, as it told them last."""
    where = f", {about['where']}" if about.get("where") else ""
    return f"in phase {about.get('phase', 'INIT')} after step {about.get('step', 0)}{where}"


def _process(about: dict[str, Any]) -> str:
    return f"process {about.get('pid', '?')} on {about.get('host', '?')}"


def gone(about: dict[str, Any], rank: int) -> str:
    """Says that the process of a rank ended."""
    return (
        f"rank {rank}: died without a word, it was killed or crashed; got {_process(about)}, last {doing(about)}. "
        f"Look at its output and at the machine's memory."
    )


def failed(about: dict[str, Any], rank: int, failure: str) -> str:
    """Says that a rank ends with an error of its own."""
    return f"rank {rank}: failed {doing(about | {'where': ''})}, got {failure}. Look at its output."


def silent(about: dict[str, Any], rank: int, seconds: float) -> str:
    """Says that nothing was heard of a rank."""
    return (
        f"rank {rank}: gave no sign of life for {seconds:.0f} s, it is stopped or its machine is gone; got "
        f"{_process(about)}, last {doing(about)}. Look at the machine, or raise ddp_heartbeat_timeout."
    )


def awaited(about: dict[str, Any], rank: int) -> str:
    """Says that a rank did not come to a collective."""
    return (
        f"rank {rank}: kept the others waiting, who gave up after ddp_timeout; got {_process(about)}, "
        f"{doing(about)}. Look for a lock, or for a collective that this rank does not come to."
    )
