"""Losses and gradient norms between two logged rows.

On the CPU a value is read at once (0.3 us). On an accelerator tensors are kept and added up there, so that nothing
waits for the device until a row is logged.
"""

from __future__ import annotations

from typing import Any

import torch


class LossMeter:
    """Sums the losses of updates: since the last row, and since the run began.

    The loss of an update is the sum over its targets, in all micro-batches and on all ranks, over their count. A rank
    adds its own share; shares add up over ranks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0
        self.updates = 0
        self.window_updates: Any = 0
        self.window_sum: Any = 0.0
        self.grad_norm: torch.Tensor | float | None = None
        self.learning_rate: Any = None

    def add(self, loss: float | torch.Tensor, updates: int | torch.Tensor = 1) -> None:
        """Adds this rank's share of the loss of one update; of none (0, 0) when the device passes over it."""
        self.window_sum += loss
        self.window_updates += updates

    def read(self) -> tuple[float, int]:
        """Gives (sum, updates) of this rank since the last call and begins a new window."""
        window = float(self.window_sum), int(self.window_updates)
        self.total += window[0]
        self.updates += window[1]
        self.window_sum, self.window_updates = 0.0, 0
        return window

    def mean(self) -> tuple[float, int]:
        """Gives (sum, updates) of this rank since the run began; the open window stays open."""
        return self.total + float(self.window_sum), self.updates + int(self.window_updates)

    def state_dict(self) -> dict[str, float | None]:
        """Gives the sums as numbers."""
        return {
            "total": self.total,
            "updates": self.updates,
            "window_sum": float(self.window_sum),
            "window_updates": int(self.window_updates),
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
            "learning_rate": None if self.learning_rate is None else float(self.learning_rate),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the sums of `state_dict`."""
        self.total, self.updates = float(state["total"]), int(state["updates"])
        self.window_sum, self.window_updates = float(state["window_sum"]), int(state["window_updates"])
        self.grad_norm, self.learning_rate = state["grad_norm"], state["learning_rate"]
