"""What is in a checkpoint.

    model.safetensors, config.json, …     the model, as its own library or ours writes it, with its tokenizer
    state.json, state.safetensors         counters, optimizer, schedule, gradient scaler: equal on all ranks
    rank-00000.json, …safetensors         of each rank: random states, open sums of losses, memory of plugins
    log_history.jsonl                     the logged rows, shared with the file in the output folder
    manifest.json                         written last; see `manifest`

A checkpoint of the model alone has the first and the last of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

STATE: Final = "state"
HISTORY: Final = "log_history.jsonl"
OF_A_RANK: Final = ("losses", "parts", "plugins")
"""Parts of the trainer's state that differ between ranks."""


def rank_name(rank: int) -> str:
    """Gives the name of the files of one rank."""
    return f"rank-{rank:05d}"


def required_files(world_size: int) -> Iterator[str]:
    """Gives the files without which no run can be resumed, besides the model's."""
    yield f"{STATE}.json"
    yield HISTORY
    for rank in range(world_size):
        yield f"{rank_name(rank)}.json"


def split(state: Mapping[str, Any], random_states: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives what is equal on all ranks, and what is this rank's own."""
    shared = {name: value for name, value in state.items() if name not in OF_A_RANK}
    own = {name: value for name, value in state.items() if name in OF_A_RANK}
    return shared, {**own, "random_states": random_states}
