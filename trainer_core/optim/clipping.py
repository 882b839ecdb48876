"""Gradient clipping by total norm, equal to torch's to the bit and cheaper.

`torch.nn.utils.clip_grad_norm_` walks and groups the parameters at every call, and multiplies by 1.0 where nothing
is to be clipped, since on an accelerator a test would cost a synchronization. Here the walk is done once, and on a
CPU, where reading the norm is free, the gradients are left alone when the limit is clearly kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor

# Where torch's own function would take its foreach path; elsewhere its function is called.
FOREACH_DEVICES: Final = frozenset({"cpu", "cuda"})

# Share of the limit below which a coefficient is 1 in any float format: bfloat16, the coarsest, rounds by 0.4 %.
SURELY_KEPT: Final = 0.98

# What torch adds to the norm before it divides.
NORM_EPSILON: Final = 1e-6


def build_clipper(parameters: Iterable[Tensor], max_norm: float) -> Callable[[], Tensor]:
    """Gives a function that clips the gradients of `parameters` and returns their norm before clipping.

    Args:
        parameters: read once; parameters without a gradient at the time of a call are skipped.
        max_norm: limit of the total 2-norm; `inf` measures without clipping.

    Returns:
        A function of no arguments. The norm is a 0-dim tensor on the device of the gradients, never read back from
        an accelerator.
    """
    kept = list(parameters)
    if len({(type(p), p.device, p.dtype) for p in kept}) != 1 or not _is_plain(kept[0]):
        return lambda: torch.nn.utils.clip_grad_norm_(kept, max_norm)
    return _build_foreach_clipper(kept, float(max_norm), reads_norm=kept[0].device.type == "cpu")


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) in (Tensor, torch.nn.Parameter) and parameter.device.type in FOREACH_DEVICES


def _build_foreach_clipper(parameters: list[Tensor], max_norm: float, *, reads_norm: bool) -> Callable[[], Tensor]:
    foreach_norm, foreach_multiply, stack = torch._foreach_norm, torch._foreach_mul_, torch.stack
    vector_norm, is_grad_enabled, set_grad_enabled = (
        torch.linalg.vector_norm,
        torch.is_grad_enabled,
        torch._C._set_grad_enabled,
    )
    surely_kept = max_norm * SURELY_KEPT

    def clip() -> Tensor:
        grads = [grad for parameter in parameters if (grad := parameter.grad) is not None]
        if not grads:
            return torch.tensor(0.0)
        grad_enabled = is_grad_enabled()
        set_grad_enabled(False)
        try:
            norm: Tensor = vector_norm(stack(foreach_norm(grads, 2.0)), 2.0)
            if reads_norm and norm.item() + NORM_EPSILON < surely_kept:
                return norm
            foreach_multiply(grads, (norm + NORM_EPSILON).reciprocal_().mul_(max_norm).clamp_max_(1.0))
        finally:
            set_grad_enabled(grad_enabled)
        return norm

    return clip
