"""Random state of samples: what a dataset or a collator draws depends on (seed, epoch, index) and on nothing else.

Python's `random`, numpy's global generator and torch's default generator are *lent* to user code for one batch and
then put back, so that fetching leaves the run's own states as they were, with or without workers. Seeding three
generators for every sample would cost more than a small step, and most datasets draw nothing. So:

    hold the states; fetch and collate
    a generator moved that was not seeded?  put it back, seed it from now on, fetch the batch again
    put the states back

A batch is therefore never made from an unseeded draw, and the first batch of a run is no exception: content does not
depend on history. Each generator is watched for itself; one that nobody draws from is never seeded. How each is
watched (6 us a batch for the three, on one core):

    torch   the state is read before and after, 0.7 us each, and compared
    numpy   its state is read from memory through numpy's own `ctypes` interface, 0.4 us, as `get_state` costs 36
    python  the same, from the memory of its generator, 0.4 us, as `getstate` costs 9

Generators that user code makes for itself are its own affair.
"""

from __future__ import annotations

import ctypes
import platform
import random
from enum import IntEnum
from typing import Any, Final, Protocol, cast

import numpy as np
import torch

_MASK: Final = (1 << 64) - 1
_bytes: Final = ctypes.string_at
_MT19937_BYTES: Final = 625 * 4  # 624 words and the position


class Purpose(IntEnum):
    """What a seed is for; equal numbers for different purposes give unrelated seeds."""

    ORDER = 1
    SAMPLE = 2
    COLLATE = 3
    EVAL_SAMPLE = 4
    EVAL_COLLATE = 5
    LOADER = 6


def mix(seed: int, *parts: int) -> int:
    """Gives 63 well-mixed bits of the numbers (the finalizer of SplitMix64, Steele et al. 2014, for each)."""
    value = seed & _MASK
    for part in parts:
        value = (value + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 1


class Guard(Protocol):
    """One global generator: held, watched or seeded, and released."""

    def hold(self) -> None:
        """Remembers the state, which is the run's own."""

    def moved(self) -> bool:
        """Tells whether anybody drew since `hold`; if not, the state is as it was and needs no `release`."""

    def seed(self, value: int) -> None:
        """Seeds the generator with (part of) 63 bits."""

    def release(self) -> None:
        """Puts the state back as it was at `hold`."""


class TorchGuard:
    """torch's default generator (CPU)."""

    def __init__(self) -> None:
        self._generator = torch.default_generator
        self._state = self._generator.get_state()
        self._size = self._state.nbytes

    def hold(self) -> None:
        """Remembers the state."""
        self._state = self._generator.get_state()

    def moved(self) -> bool:
        """Compares the state with the one that was held, byte by byte (torch.equal takes twice as long)."""
        now, held = self._generator.get_state(), self._state
        return _bytes(now.data_ptr(), self._size) != _bytes(held.data_ptr(), self._size)

    def seed(self, value: int) -> None:
        """Seeds from the high bits: torch uses 32, and numpy gets the other 32."""
        self._generator.manual_seed(value >> 31)

    def release(self) -> None:
        """Sets the state that was held."""
        self._generator.set_state(self._state)


class NumpyGuard:
    """numpy's global `RandomState`.

    One thing is not in the memory that is read: a normal deviate that numpy keeps for the next call. While there
    is one (after an odd number of normals), `get_state` is asked as well, for 72 us a batch. A bit generator other
    than MT19937, numpy's default, is left alone: neither watched nor seeded.
    """

    def __init__(self) -> None:
        self._bits: object = None
        self._address = 0
        self._held = b""
        self._kept = False
        self._state: Any = None

    def hold(self) -> None:
        """Remembers the state; a full copy only when it is another than last time."""
        bits = np.random.mtrand.get_bit_generator()
        if bits is not self._bits:
            self._bits, self._held = bits, b""
            self._address = bits.ctypes.state_address if isinstance(bits, np.random.MT19937) else 0
        now = self._read()
        if now != self._held or self._kept:
            self._held = now
            self._state = np.random.get_state()
            self._kept = _has_kept(self._state)

    def moved(self) -> bool:
        """Compares the state with the one that was held."""
        return self._read() != self._held or (self._kept and not _has_kept(np.random.get_state()))

    def seed(self, value: int) -> None:
        """Seeds from the low 32 bits, the most that numpy's fast path takes."""
        if self._address:
            np.random.seed(value & 0xFFFFFFFF)

    def release(self) -> None:
        """Sets the state that was held; by memory where that holds all of it (2 us instead of 36)."""
        if self._kept:
            np.random.set_state(self._state)
        elif self._address:
            np.random.seed(0)  # forgets a kept normal deviate
            ctypes.memmove(self._address, self._held, _MT19937_BYTES)

    def _read(self) -> bytes:
        return _bytes(self._address, _MT19937_BYTES) if self._address else b""


class PythonGuard:
    """Python's `random` module.

    Its state is compared in memory (0.4 us) and read in full (9 us) only after somebody drew; a normal deviate that is
    kept for the next call is not in that memory. Where Python is another than CPython it is read in full each time.
    """

    def __init__(self) -> None:
        self._generator = cast("random.Random", getattr(random.getrandbits, "__self__"))  # noqa: B009 (mypy: a function)
        self._size = 0
        if platform.python_implementation() == "CPython":
            base = random.Random.__base__
            assert base is not None
            self._size = base.__basicsize__ - object.__basicsize__
        self._address = id(self._generator) + object.__basicsize__
        self._memory = b""
        self._state: Any = None

    def hold(self) -> None:
        """Remembers the state; a full copy only when it is another than last time."""
        if not self._memory or self.moved():
            self._memory, self._state = self._read(), random.getstate()

    def moved(self) -> bool:
        """Compares the state with the one that was held."""
        if not self._size:
            return bool(random.getstate() != self._state)
        deviate: float | None = self._generator.gauss_next  # type: ignore[attr-defined]  # absent from typeshed
        return self._read() != self._memory or deviate != self._state[2]

    def seed(self, value: int) -> None:
        """Seeds from all bits."""
        random.seed(value)

    def release(self) -> None:
        """Sets the state that was held."""
        random.setstate(self._state)

    def _read(self) -> bytes:
        return _bytes(self._address, self._size)


class Lending:
    """Lends the global random states to user code, batch by batch.

    Args:
        seed_all: seed every generator from the first batch on, for code that cannot be asked for a batch twice.
    """

    def __init__(self, *, seed_all: bool = False) -> None:
        guards: tuple[Guard, ...] = (TorchGuard(), NumpyGuard(), PythonGuard())
        self._guards = guards
        self._watched = () if seed_all else guards
        self._seeded = guards if seed_all else ()

    @property
    def seeding(self) -> bool:
        """Whether any generator is seeded for each sample."""
        return bool(self._seeded)

    def hold(self) -> None:
        """Remembers the run's states."""
        for guard in self._guards:
            guard.hold()

    def seed(self, value: int) -> None:
        """Seeds the generators that user code has been seen to draw from."""
        for guard in self._seeded:
            guard.seed(value)

    def release(self) -> bool:
        """Puts the run's states back; True when an unseeded one was drawn from, and the batch must be made again."""
        for guard in self._seeded:
            guard.release()
        moved = [guard for guard in self._watched if guard.moved()]
        if not moved:
            return False
        for guard in moved:
            guard.release()
        self._seeded += tuple(moved)
        self._watched = tuple(guard for guard in self._watched if guard not in moved)
        return True


def _has_kept(state: Any) -> bool:
    """Tells whether this state of numpy's holds a normal deviate for the next call."""
    return bool(state[3])
