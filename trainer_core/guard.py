"""What happens when a loss or its gradient is NaN or infinite: it is said, and the weights are not touched.

On the CPU the loss of a micro-batch is read at once. On an accelerator nothing waits for the device: the verdict
stays there as the `found_inf` of a fused optimizer, which then passes over the update, and is read by the host
when a row is logged, before an evaluation or a save, and at the end. With the policy "stop" the verdict sticks, so
that no later update is made before the host has read it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import torch

from trainer_core.errors import NonFiniteLossError

if TYPE_CHECKING:
    from trainer_core.ranks import Ranks

logger = logging.getLogger("trainer_core.guard")

NanPolicy = Literal["stop", "skip", "ignore"]


class Guard:
    """Judges the loss of each update, and the norm of its gradient where that is computed.

    Args:
        policy: "stop" raises, "skip" passes over the update, "ignore" does nothing.
        optimizer: is told the verdict where it can act on it by itself.
        ranks: all of them come to one verdict.
        reads_now: read each loss on the host; without it the verdict stays on the device.
    """

    def __init__(self, policy: NanPolicy, optimizer: torch.optim.Optimizer, ranks: Ranks, *, reads_now: bool) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.ranks = ranks
        self.is_on = policy != "ignore"
        self.reads_now = reads_now
        self.num_skipped = 0
        self._verdict = torch.zeros((), device=ranks.device)
        self._first_bad_step = torch.full((), math.inf, device=ranks.device)
        self._num_bad = torch.zeros((), device=ranks.device)

    def passes(self, loss: float | torch.Tensor, grad_norm: torch.Tensor | None, step: int) -> bool:
        """Tells whether update `step` may touch the weights.

        Args:
            loss: of this rank.
            grad_norm: of all ranks, where it is computed anyway: a finite loss can have a gradient that is not.
            step: named in the report.

        Raises:
            NonFiniteLossError: one of them is not finite, on some rank, and the policy is "stop".
        """
        if not self.reads_now:
            judged = torch.as_tensor(loss) if grad_norm is None else loss + 0.0 * grad_norm
            self._judge_on_device(judged, step)
            return True
        if self.ranks.world_size > 1:
            (loss,) = self.ranks.sum_of_numbers(float(loss))  # a share that is not finite makes the sum so
        if not math.isfinite(loss):
            self._report(step, "loss", float(loss))
            return False
        if grad_norm is not None and not math.isfinite(norm := grad_norm.item()):
            self._report(step, "norm of the gradient", norm)
            return False
        return True

    def counted(self, loss: float | torch.Tensor) -> tuple[Any, Any]:
        """Gives what an update that passed adds to the sums: (loss, 1), or (0, 0) if the device skips it."""
        if self.reads_now or self.policy != "skip":
            return loss, 1
        good = 1 - self._verdict
        return torch.where(good > 0, loss, torch.zeros_like(good)), good

    def settle(self) -> None:
        """Reads a verdict that was left on the device.

        Raises:
            NonFiniteLossError: an update since the last call had a loss that is not finite, and the policy is "stop".
        """
        if self.reads_now or not self.is_on:
            return
        first_bad_step = float(self._first_bad_step.item())
        if math.isfinite(first_bad_step):
            more = int(self._num_bad.item()) - 1
            self._first_bad_step.fill_(math.inf)
            self._num_bad.zero_()
            self._report(int(first_bad_step), "loss or its gradient", "NaN or infinity", more)

    def release(self) -> None:
        """Takes the verdict off the optimizer."""
        if not self.reads_now and hasattr(self.optimizer, "found_inf"):
            del self.optimizer.found_inf

    def _judge_on_device(self, loss: torch.Tensor, step: int) -> None:
        is_bad = self.ranks.max((~torch.isfinite(loss.detach())).to(torch.float32))
        self._verdict = torch.maximum(self._verdict, is_bad) if self.policy == "stop" else is_bad
        here = torch.where(is_bad > 0, float(step), math.inf)
        self._first_bad_step = torch.minimum(self._first_bad_step, here)
        self._num_bad = self._num_bad + is_bad
        self.optimizer.found_inf = self._verdict  # type: ignore[attr-defined] # torch's protocol with GradScaler

    def _report(self, step: int, what: str, value: float | str, more: int = 0) -> None:
        if self.policy == "skip":
            self.num_skipped += 1 + more
            also = f", as are {more} after it" if more else ""
            logger.warning(
                "step %d: the %s is %s; the update is skipped%s (nan_policy='skip').", step, what, value, also
            )
            return
        raise NonFiniteLossError(
            f"step {step}: the {what} is not finite, got {value}. The weights are still those of step {step - 1}. "
            f"Lower learning_rate, look at the batch of that step, or set nan_policy to 'skip' or 'ignore'."
        )


def can_judge_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Tells whether the optimizer passes over an update by itself when its `found_inf` is set on `device`."""
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    return device.type != "cpu" and is_fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
