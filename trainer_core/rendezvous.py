"""How ranks find each other when torchrun has started them again.

torchrun's agent keeps one store for all restarts of a job, and torch lets a process group write its addresses there
under the same names each time: a rank that is restarted reads where the ranks before it listened, is refused there or
waits, and the restart fails or hangs. So what each restart writes gets a name of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME: Final = "trainer-core"
_known: Final[set[str]] = set()


def meeting_place() -> str | None:
    """Gives the `init_method` for a process group, or None where torch's own serves."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    if SCHEME not in _known:
        register_rendezvous_handler(SCHEME, _meet)  # type: ignore[no-untyped-call] # torch's own
        _known.add(SCHEME)
    return f"{SCHEME}://"


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """Gives store, rank and world size, as torch's own way by the environment does."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, world_size in rendezvous(f"env://?{urlsplit(url).query}", timeout=timeout):
        yield PrefixStore(f"attempt {attempt} of {world_size}", store), rank, world_size
