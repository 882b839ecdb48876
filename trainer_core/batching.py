"""How the samples of an update are shared out over ranks and micro-batches.

An update trains on samples that follow one another in the order of their epoch, so a run is defined by how many they
are: `global_batch_size`. Into how many micro-batches on how many ranks they are cut changes neither the gradient nor
the number of updates. A resumed run keeps that number, with another number of ranks or another micro-batch too, and
accumulates as many micro-batches as that takes.

What the run began with leaves a trace in the order of an epoch: `dataloader_drop_last` leaves out what fills no
micro-batch over all ranks, and samples of like length are sorted into such. A resumed run keeps that number as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer_core.errors import SettingsError

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments


@dataclass(frozen=True, slots=True)
class Batching:
    """The cut of an update.

    Attributes:
        batch_size: samples a micro-batch a rank.
        accumulation: micro-batches an update on each rank.
        world_size: ranks.
        window: samples a micro-batch over all ranks had when the run began.
    """

    batch_size: int
    accumulation: int
    world_size: int
    window: int

    @property
    def global_batch_size(self) -> int:
        """Samples of a full update over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    def windows(self, batches: int) -> int:
        """Gives how many micro-batches of the run's beginning `batches` whole ones of now are."""
        return batches * self.batch_size * self.world_size // self.window

    def __str__(self) -> str:
        ranks = "rank" if self.world_size == 1 else "ranks"
        return f"{self.batch_size} a micro-batch × {self.accumulation} accumulated × {self.world_size} {ranks}"


def new_batching(args: TrainingArguments, world_size: int) -> Batching:
    """Gives the cut that the settings name, for a run that begins."""
    size = args.per_device_train_batch_size
    return Batching(size, args.gradient_accumulation_steps, world_size, size * world_size)


def kept_batching(args: TrainingArguments, world_size: int, wanted: int, window: int) -> Batching:
    """Gives the cut with which a resumed run goes on, so that an update keeps its samples.

    Args:
        args: the settings; how many micro-batches they accumulate is passed over.
        world_size: ranks.
        wanted: samples an update over all ranks.
        window: samples a micro-batch over all ranks had when the run began.

    Raises:
        SettingsError: they cannot be shared out so; it says which numbers would work.
    """
    size = args.per_device_train_batch_size
    accumulation, rest = divmod(wanted, size * world_size)
    if rest:
        raise SettingsError([_refusal(size, world_size, wanted)])
    return Batching(size, accumulation, world_size, window)


def _refusal(size: int, world_size: int, wanted: int) -> str:
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    told = (
        f"per_device_train_batch_size: the run has {wanted} samples an update, which {ranks} cannot share out evenly "
        f"in micro-batches of one size, got {size}. Resume with "
    )
    sizes = _divisors(wanted // world_size) if wanted % world_size == 0 else []
    worlds = [number for number in _divisors(wanted) if wanted % (number * size) == 0]
    ways = [f"{_one_of(sizes)} on {ranks}"] if sizes else []
    ways += [f"{size} on {_one_of(worlds)} rank(s)"] if worlds else []
    return told + (", or with ".join(ways) or f"1 on {_one_of(_divisors(wanted))} rank(s)") + "."


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _one_of(numbers: list[int]) -> str:
    """Gives numbers as words; of many the smallest and the largest."""
    shown = [str(number) for number in (numbers if len(numbers) <= 8 else [*numbers[:4], *numbers[-4:]])]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
