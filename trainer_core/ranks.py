"""The processes of a run, and the few things that they agree on.

The seam to Accelerate: one process, DDP and later sharded models are prepared there; the names are translated here.
With one process every call returns at once.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import torch

from trainer_core.connections import remembered
from trainer_core.errors import DistributedError
from trainer_core.rendezvous import meeting_place
from trainer_core.settings.section import DEFAULT

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer_core.settings.arguments import TrainingArguments

logger = logging.getLogger("trainer_core.ranks")


def create_accelerator(args: TrainingArguments) -> Accelerator:
    """Gives Accelerate's object for this process, on the CPU where there is no accelerator.

    Raises:
        DistributedError: a launcher started several processes, and they do not see each other.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    wants = {
        "find_unused_parameters": args.ddp_find_unused_parameters,
        "bucket_cap_mb": args.ddp_bucket_cap_mb,
        "broadcast_buffers": args.ddp_broadcast_buffers,
        "static_graph": args.ddp_static_graph,
    }
    ddp = DistributedDataParallelKwargs(**{name: value for name, value in wants.items() if value is not None})
    group = InitProcessGroupKwargs(
        backend=args.ddp_backend, init_method=meeting_place(), timeout=timedelta(seconds=args.ddp_timeout)
    )
    is_fresh = not AcceleratorState._shared_state
    is_on_cpu = args.use_cpu or not torch.accelerator.is_available()
    with _launched_for_shards(is_on_cpu=is_on_cpu) as passed_over, remembered():
        accelerator = Accelerator(
            cpu=True if is_on_cpu else None,
            mixed_precision="no" if is_fresh else None,  # autocast is entered by the step itself
            kwargs_handlers=[ddp, group],
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise DistributedError(
            f"launch: {launched} processes were started and each of them believes that it is alone. "
            f"Start them with `torchrun` and, without an accelerator, set ACCELERATE_USE_CPU=true."
        )
    _check_sharding(accelerator, passed_over)
    if accelerator.num_processes > 1:
        _agree_on_group(args)
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return accelerator


SHARDING: Final = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
"""Ways to share a model out over ranks, and the variable in which `accelerate launch` hands on the wish for it."""


@contextmanager
def _launched_for_shards(*, is_on_cpu: bool) -> Iterator[list[str]]:
    """Hides a launcher's wish for shards where Accelerate has none, on the CPU; gives which it was."""
    hidden = {
        method: os.environ.pop(variable)
        for method, variable in SHARDING.items()
        if is_on_cpu and os.environ.get(variable) == "true"
    }
    try:
        yield list(hidden)
    finally:
        os.environ.update({SHARDING[method]: value for method, value in hidden.items()})


def _check_sharding(accelerator: Accelerator, passed_over: list[str]) -> None:
    """Refuses a launcher's wish for shards, and says where it is passed over."""
    for method in passed_over:
        _say_passed_over(method, accelerator.num_processes)
    for method, variable in SHARDING.items():
        if accelerator.distributed_type.value == method.upper():
            raise DistributedError(
                f"launch: {method} is not offered yet, got {variable}=true. Launch with --multi_gpu; models are "
                f"replicated on each rank."
            )


@cache
def _say_passed_over(method: str, world_size: int) -> None:
    """Says it once: a script may ask for several accelerators."""
    told = "launch: %s works on accelerators alone; the model is replicated on each of %d rank(s)."
    logger.warning(told, method, world_size)


def _agree_on_group(args: TrainingArguments) -> None:
    """Refuses a backend that is not the one in use, and sets the timeout; the script may have connected the ranks."""
    backend = torch.distributed.get_backend()
    if args.ddp_backend not in (None, backend):
        raise DistributedError(
            f"ddp_backend: the ranks talk through {backend!r}, got {args.ddp_backend!r}. Leave it out; or name one "
            f"that suits the device, and make no Accelerator before the trainer."
        )
    if args.sources["ddp_timeout"] != DEFAULT:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=args.ddp_timeout))


def _leave_group() -> None:
    """Leaves gloo's group, and sees to it that what its threads still read is not taken down under them."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
        _let_threads_finish()
        _skip_destructors()


def _let_threads_finish() -> None:
    """Waits until all other threads sleep, 5 s at most.

    A thread of gloo's that still holds the last reference to a tensor needs the interpreter to let go of it; where that
    is gone, the thread is unwound and C++ aborts ("terminate called without an active exception").
    """
    tasks, own, num_quiet, end = Path("/proc/self/task"), str(threading.get_native_id()), 0, monotonic() + 5.0
    while num_quiet < 2 and monotonic() < end:
        sleep(0.02)  # the interpreter is theirs meanwhile
        states = [_state_of(task) for task in tasks.iterdir() if task.name != own] if tasks.is_dir() else []
        num_quiet = num_quiet + 1 if set(states) <= {"S", ""} else 0


def _state_of(task: Path) -> str:
    """Gives the letter of a thread's state, "S" where it sleeps; nothing where it is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _skip_destructors() -> None:
    """Has the process end, with its own exit code, when Python is done and before C++ libraries are taken down.

    Torch never frees a process group that DDP has used: its threads outlive the interpreter, and would run among
    objects that are destroyed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's
        libc.fflush(None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


class Ranks:
    """World size, this rank, and the collectives that a run needs."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.world_size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.local_rank: int = accelerator.local_process_index
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Gives the sum of `value` over all ranks."""
        return self._reduce(value, torch.distributed.ReduceOp.SUM) if self.world_size > 1 else value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Gives the maximum of `value` over all ranks."""
        return self._reduce(value, torch.distributed.ReduceOp.MAX) if self.world_size > 1 else value

    def sum_of_numbers(self, *values: float) -> list[float]:
        """Gives the sums of a few host numbers over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        total: list[float] = self.sum(torch.tensor(values, dtype=dtype, device=self.device)).tolist()
        return total

    def gather_objects(self, value: Any) -> list[Any]:
        """Gives the `value` of every rank, in their order; for small things of our own making."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: Any) -> Any:
        """Gives rank 0's `value` on every rank."""
        return self.gather_objects(value)[0] if self.world_size > 1 else value

    def send_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives `tensors` on every rank the values that they have on rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.world_size > 1:
            self.accelerator.wait_for_everyone()

    def _reduce(self, value: torch.Tensor, operation: Any) -> torch.Tensor:
        reduced = value.clone()
        torch.distributed.all_reduce(reduced, op=operation)
        return reduced
