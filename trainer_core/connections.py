"""The connections of a process group, and how a collective that waits for a lost rank is ended from another thread.

Torch can abort NCCL's collectives. gloo's wait until a connection breaks, and a process that is stopped keeps its own
open: so this end is shut. Which descriptors are gloo's is known by looking before and after the group is made (Linux).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Final

import torch

_PLACE: Final = "/proc/self/fd"
_of_group: Final[set[tuple[int, str]]] = set()
_reunions: Final = count()


@contextmanager
def remembered() -> Iterator[None]:
    """Remembers the connections that are made meanwhile, if a process group is."""
    has_group, before = torch.distributed.is_initialized(), _sockets()
    yield
    if not has_group and torch.distributed.is_initialized():
        _of_group.clear()
        _of_group.update(_sockets() - before)


def cut() -> bool:
    """Ends the collective that this process waits in, and each one to come, with an error; tells whether it could."""
    if not torch.distributed.is_initialized():
        return False
    if torch.distributed.get_backend() != "gloo":
        torch.distributed.distributed_c10d._abort_process_group()
        return True
    was_cut = [_shut(descriptor) for descriptor, _ in _of_group & _sockets()]
    return any(was_cut)


def regroup(seconds: float, timeout: float) -> None:
    """Makes the process group anew with the same ranks, of which some may be in a collective of the old one.

    Args:
        seconds: to wait for all ranks to come.
        timeout: of its collectives.
    """
    group = torch.distributed.distributed_c10d
    store, backend = group._get_default_store(), torch.distributed.get_backend()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    cut()
    torch.distributed.destroy_process_group()
    with remembered():
        torch.distributed.init_process_group(
            backend,
            store=group.PrefixStore(f"reunion {next(_reunions)}", store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=seconds),
        )
    group._set_pg_timeout(timedelta(seconds=timeout))


def _sockets() -> set[tuple[int, str]]:
    """Gives the sockets of this process: descriptor, and what tells it from a later one of the same number."""
    found = set()
    for name in os.listdir(_PLACE) if os.path.isdir(_PLACE) else ():
        try:
            target = os.readlink(f"{_PLACE}/{name}")
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:"):
            found.add((int(name), target))
    return found


def _shut(descriptor: int) -> bool:
    """Shuts a connection between ranks; leaves those with the store, and what listens, which gloo would abort at."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            ends = {str(connection.getsockname()[1]), str(connection.getpeername()[1])}
            if os.environ.get("MASTER_PORT") in ends:
                return False
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it was closed meanwhile, or has ended
        return False
    return True
