"""The cases about training: CPU time an update, against the plain loops and the peers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch.utils.data import Dataset, TensorDataset

from benchmarks.contenders import BARE, OURS, OURS_WITH_USERS_OPTIMIZER, TUNED, Contender, reference
from benchmarks.report import Row
from benchmarks.turns import Estimate, ratio, take_turns
from benchmarks.workloads import DeepNetwork, Recipe, Transformer

TOLERANCE: Final = 1e-6
"""Largest difference of a weight to that of a plain loop with the same AdamW; ours has none at all."""


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: turns of each contender.
        updates: updates of a turn of a small model, a multiple of 24.
        slow_rounds, slow_updates: the same where an update takes long.
    """

    rounds: int = 15
    updates: int = 240
    slow_rounds: int = 6
    slow_updates: int = 5

    @property
    def tiny(self) -> Recipe:
        """What most cases train."""
        return Recipe(updates=self.updates, warm_updates=self.updates // 8)


LEAN: Final = Budget(rounds=8, slow_rounds=3)
"""With peers, of which some take four times as long."""

QUICK: Final = Budget(rounds=1, updates=24, slow_rounds=1, slow_updates=3)


def training_rows(budget: Budget, peers: list[Contender]) -> Iterator[Row]:
    """Gives the figures of all cases, as they are measured."""
    tiny, everybody = budget.tiny, [OURS, *peers]
    clipping = replace(tiny, clip=1.0)
    accumulating = replace(tiny, accumulation=4, updates=tiny.updates // 3, warm_updates=tiny.warm_updates // 3)
    deep = replace(tiny, build=DeepNetwork, updates=tiny.updates // 6, warm_updates=tiny.warm_updates // 3)
    transformer = Recipe(Transformer, updates=budget.slow_updates, warm_updates=1, batch_size=4, tokens=True)
    fast = partial(race, rounds=budget.rounds)
    slow = partial(race, rounds=budget.slow_rounds)
    yield from fast("plain, the user's AdamW and LambdaLR", tiny, [OURS_WITH_USERS_OPTIMIZER], target=1.05)
    yield from fast("plain, our defaults", tiny, everybody, target=0.65)
    yield from fast("clip 1.0, our defaults", clipping, everybody, target=0.70)
    yield from fast("accumulation 4, our defaults", accumulating, everybody, target=0.80)
    yield from fast("plain, a dataset of the user's own class", replace(tiny, wrap=Items), [OURS])
    yield from slow("88 modules, all of them called", deep, [OURS])
    yield from slow("transformer, 4 layers of 256, sequence 128", transformer, everybody, target=1.0)


class Items(Dataset[Any]):
    """A dataset of which nothing is known but its items, as users write them."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.tensors = dataset.tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)


def race(
    case: str, recipe: Recipe, others: list[Contender], *, rounds: int, target: float | None = None
) -> Iterator[Row]:
    """Lets contenders train by one recipe in turns; checks that their weights agree.

    Args:
        case: heading of the rows.
        recipe: what all of them train.
        others: contenders besides the two plain loops; `target` is for the first.
        rounds: turns of each.
        target: figure to reach, x bare.

    Raises:
        RuntimeError: a contender trained something else.
    """
    contenders = [BARE, TUNED, *others]
    weights: dict[str, torch.Tensor] = {}
    turns = take_turns({c.name: partial(_turn, c, recipe, weights) for c in contenders}, rounds)
    for contender in contenders:
        name = contender.name
        off = distance(contender, recipe, weights[name])
        microseconds = Estimate.of([seconds * 1e6 for seconds in turns[name]]).median
        agreement = "equal" if off == 0 else f"off by {off:.0e}"
        note = f"{microseconds:.0f} us, {ratio(turns, name, 'tuned').median:.2f}x tuned; weights {agreement}"
        yield Row(case, name, "x bare", ratio(turns, name, "bare"), target if contender is others[0] else None, note)


def distance(contender: Contender, recipe: Recipe, weights: torch.Tensor) -> float:
    """Gives the largest difference of `weights` to those that the contender must end with.

    Raises:
        RuntimeError: it is more than rounding.
    """
    wanted = reference(recipe, fused=contender.fused, weight_decay=contender.weight_decay)
    off = float((weights - wanted).abs().max())
    if off > TOLERANCE:
        raise RuntimeError(f"{contender.name}: ends with other weights than the plain loop, off by {off:.1e}")
    return off


def _turn(contender: Contender, recipe: Recipe, weights: dict[str, torch.Tensor]) -> float:
    seconds, weights[contender.name] = contender.turn(recipe)
    return seconds
