"""The last step boundary: where a run stands between two updates, kept so that it can be brought back.

An update that fails half way (a dataset item, a collator, a loss, a hook before the optimizer's step), and an
evaluation that fails or is given up, have drawn random numbers, moved buffers and counted samples, but have not touched
the weights. `mark` remembers these things before each of them; `put_back` sets them again, so that what is saved then
is exactly what an uninterrupted run had there.

What a mark costs an update, on one core: torch's random state is read (0.7 us); python's and numpy's are compared in
memory (0.4 us each) and read in full only after somebody drew from them; the model's buffers are copied in one call
(50 us for those of 53 batch norms), a large one only when torch counted a change of it, which it does not for the
running statistics of norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import torch

from trainer_core.data.seeding import NumpyGuard, PythonGuard

if TYPE_CHECKING:
    from trainer_core.state import TrainerState

_COUNTERS: Final = ("batches_done", "num_samples_seen", "num_input_tokens_seen", "last_eval_step")
"""Counters that have moved when an update or an evaluation fails."""


LARGE_BYTES: Final = 2**16
"""A larger buffer is copied only when torch counted a change of it."""


class Interrupted(BaseException):
    """Ends a wait for data, or an evaluation, in a run that is to be cut short; the loop catches it."""


class Boundary:
    """Remembers where the update or the evaluation at hand began.

    Args:
        state: the counters of the run.
        device: of this rank.
    """

    def __init__(self, state: TrainerState, device: torch.device) -> None:
        self.state = state
        self.device = torch.get_device_module(device) if device.type != "cpu" else None
        self.step = -1
        self._torch = torch.default_generator
        self._python = PythonGuard()
        self._numpy = NumpyGuard()
        self._buffers: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._versions: dict[int, int] = {}
        self._small: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
        self._shared_state: Any = None
        self._device_state: Any = None
        self._count = attrgetter(*_COUNTERS)
        self._counters: tuple[int, ...] = ()
        self._rows = 0

    def watch(self, model: torch.nn.Module) -> None:
        """Takes the buffers of `model` that a checkpoint holds; anew when plugins may have changed the model."""
        self._buffers = [value for value in persistent_buffers(model) if value.numel()]
        self._copies = [buffer.detach().clone() for buffer in self._buffers]
        self._versions = {
            place: buffer._version for place, buffer in enumerate(self._buffers) if buffer.nbytes > LARGE_BYTES
        }
        small = [place for place in range(len(self._buffers)) if place not in self._versions]
        self._small = [self._copies[place] for place in small], [self._buffers[place] for place in small]

    def mark(self) -> None:
        """Remembers this moment."""
        state = self.state
        self._shared_state = self._torch.get_state()
        self._python.hold()
        self._numpy.hold()
        if self.device is not None:
            self._device_state = self.device.get_rng_state()
        if self._buffers:
            self._copy()
        self._counters = self._count(state)
        self._rows = len(state.log_history)
        self.step = state.global_step

    def forget(self) -> None:
        """Says that what began at the mark is done: there is nothing to put back."""
        self.step = -1

    def put_back(self) -> None:
        """Sets again what moved since the mark, unless the update that began there was done."""
        if self.step != self.state.global_step:
            return
        self._torch.set_state(self._shared_state)
        self._python.release()
        self._numpy.release()
        if self.device is not None:
            self.device.set_rng_state(self._device_state)
        with torch.no_grad():
            for buffer, copy in zip(self._buffers, self._copies, strict=True):
                buffer.copy_(copy)
        for name, value in zip(_COUNTERS, self._counters, strict=True):
            setattr(self.state, name, value)
        del self.state.log_history[self._rows :]

    def _copy(self) -> None:
        copies, buffers = self._small
        if copies:
            torch._foreach_copy_(copies, buffers)
        for place, version in self._versions.items():
            buffer = self._buffers[place]
            if buffer._version != version:
                self._copies[place].copy_(buffer)
                self._versions[place] = buffer._version


def persistent_buffers(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Gives the buffers that are part of the model's `state_dict`, each once."""
    seen: set[int] = set()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set and id(buffer) not in seen:
                seen.add(id(buffer))
                yield buffer
