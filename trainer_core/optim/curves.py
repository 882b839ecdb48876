"""Learning rate schedules as formulas: what share of the learning rate holds at which step.

A formula is built once from the run's length and the options of `lr_scheduler_kwargs`; what it gives is a pure
function of the step, so the rate at any step is known before training. The names, options and values are those of
`transformers.get_scheduler`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Final, Literal, TypeAlias

Factor: TypeAlias = Callable[[int], float]
"""The share of the learning rate at a step; step 0 is the first update."""

Shape: TypeAlias = Literal["linear", "cosine", "1-sqrt"]


@dataclass(frozen=True)
class Span:
    """What a formula knows of the run."""

    warmup_steps: int
    max_steps: int
    learning_rate: float

    @property
    def rise(self) -> float:
        """Steps of the warm-up, as a divisor."""
        return float(max(1, self.warmup_steps))

    @property
    def fall(self) -> float:
        """Steps after the warm-up, as a divisor."""
        return float(max(1, self.max_steps - self.warmup_steps))


def constant(span: Span) -> Factor:
    """The learning rate itself, from the first step."""
    return lambda step: 1.0


def constant_with_warmup(span: Span) -> Factor:
    """A linear rise, then constant."""
    warmup, rise = span.warmup_steps, span.rise
    return lambda step: step / rise if step < warmup else 1.0


def linear(span: Span) -> Factor:
    """A linear rise, then a linear fall to 0 at the last step."""
    warmup, total, rise, fall = span.warmup_steps, span.max_steps, span.rise, span.fall

    def factor(step: int) -> float:
        if step < warmup:
            return step / rise
        return (total - step) / fall if step < total else 0.0

    return factor


def cosine(span: Span, *, num_cycles: float = 0.5) -> Factor:
    """A linear rise, then `num_cycles` waves of a cosine: 0.5 falls to 0 once."""
    return _cosine_to(span, num_cycles, 0.0)


def cosine_with_min_lr(
    span: Span, *, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None
) -> Factor:
    """As `cosine`, falling to `min_lr`, which is a rate, or `min_lr_rate`, which is a share of the learning rate."""
    return _cosine_to(span, num_cycles, _floor(span, min_lr, min_lr_rate))


def _cosine_to(span: Span, num_cycles: float, floor: float) -> Factor:
    warmup, rise, fall = span.warmup_steps, span.rise, span.fall
    turn, height = pi * float(num_cycles) * 2.0, 1 - floor

    def factor(step: int) -> float:
        if step < warmup:
            return step / rise
        return max(0.0, 0.5 * (1.0 + cos(turn * ((step - warmup) / fall))) * height + floor)

    return factor


def _floor(span: Span, min_lr: float | None, min_lr_rate: float | None) -> float:
    if min_lr is not None and min_lr_rate is None:
        return min_lr / span.learning_rate
    if min_lr_rate is not None and min_lr is None:
        return min_lr_rate
    raise ValueError(f"min_lr: exactly one of min_lr and min_lr_rate is needed, got {min_lr!r} and {min_lr_rate!r}")


def cosine_warmup_with_min_lr(
    span: Span,
    *,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Factor:
    """As `cosine_with_min_lr`, one step ahead: the first step already has a rate, `warmup_lr_rate` or a rise of one."""
    warmup, rise, fall = span.warmup_steps, span.rise, span.fall
    floor = _floor(span, min_lr, min_lr_rate)
    turn, height, rest = pi * num_cycles * 2.0, 1 - floor, max(1, warmup - 1)

    def factor(step: int) -> float:
        if step < warmup and warmup_lr_rate is None:
            return (step + 1.0) / rise
        if step < warmup and warmup_lr_rate is not None:
            return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / rest
        return max(0.0, 0.5 * (1.0 + cos(turn * ((step - warmup + 1.0) / fall))) * height + floor)

    return factor


def cosine_with_restarts(span: Span, *, num_cycles: int = 1) -> Factor:
    """A linear rise, then `num_cycles` falls of a half cosine, each from the top."""
    warmup, rise, fall, cycles = span.warmup_steps, span.rise, span.fall, float(num_cycles)

    def factor(step: int) -> float:
        if step < warmup:
            return step / rise
        progress = (step - warmup) / fall
        return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + cos(pi * ((cycles * progress) % 1.0))))

    return factor


def polynomial(span: Span, *, lr_end: float = 1e-7, power: float = 1.0) -> Factor:
    """A linear rise, then a fall to the rate `lr_end` as a polynomial of degree `power`."""
    warmup, total, rise, top = span.warmup_steps, span.max_steps, span.rise, span.learning_rate
    if not top > lr_end:
        raise ValueError(f"lr_end: must be below learning_rate {top!r}, got {lr_end!r}")
    height, steps, end = top - lr_end, total - warmup, lr_end / top

    def factor(step: int) -> float:
        if step < warmup:
            return step / rise
        if step > total or not steps:
            return end
        remaining: float = (1 - (step - warmup) / steps) ** power
        return (height * remaining + lr_end) / top

    return factor


def inverse_sqrt(span: Span, *, timescale: int | None = None) -> Factor:
    """A linear rise, then a fall as 1 / sqrt(step); `timescale` is in steps, by default those of the warm-up."""
    warmup, rise = span.warmup_steps, span.rise
    scale = timescale if timescale is not None else warmup or 10_000
    shift = scale - warmup
    return lambda step: step / rise if step < warmup else 1.0 / sqrt((step + shift) / scale)


def warmup_stable_decay(
    span: Span,
    *,
    num_decay_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: Shape = "linear",
    decay_type: Shape = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Factor:
    """A rise, a plateau and a fall over the last `num_decay_steps`, from and to `min_lr_ratio` of the learning rate."""
    if num_decay_steps is None:
        raise ValueError("num_decay_steps: is needed, got None")
    stable = span.max_steps - span.warmup_steps - num_decay_steps if num_stable_steps is None else num_stable_steps
    if stable < 0:
        parts = f"{span.warmup_steps} steps of warm-up and {num_decay_steps} of decay"
        raise ValueError(f"num_decay_steps: {parts} do not fit into the run, got max_steps={span.max_steps}")
    warmup, rise, fall = span.warmup_steps, span.rise, float(max(1, num_decay_steps))
    decay_start, end = warmup + stable, warmup + stable + num_decay_steps
    up, down, height = RISES[warmup_type], _falling(decay_type, num_cycles), 1.0 - min_lr_ratio

    def factor(step: int) -> float:
        if step < warmup:
            return max(0.0, up(step / rise) * height + min_lr_ratio)
        if step < decay_start:
            return 1.0
        return max(0.0, down((step - decay_start) / fall) * height + min_lr_ratio) if step < end else min_lr_ratio

    return factor


RISES: Final[Mapping[Shape, Callable[[float], float]]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - cos(pi * progress)),
    "1-sqrt": lambda progress: 1.0 - sqrt(1.0 - progress),
}


def _falling(shape: Shape, num_cycles: float) -> Callable[[float], float]:
    turn = pi * float(num_cycles) * 2.0
    falls: dict[Shape, Callable[[float], float]] = {
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + cos(turn * progress)),
        "1-sqrt": lambda progress: 1.0 - sqrt(progress),
    }
    return falls[shape]
