"""The order in which gradients of several ranks are added up, made the same in the first update as in all others.

DDP sends gradients in buckets, and lays these out anew after the first backward it sees, in the order in which
gradients came. Where a gradient lies in its bucket decides in which order a ring of three or more ranks adds it up, and
with it the last bits of the sum: the first update after a resume would differ from that of the run that nobody cut. So
the layout is settled before the first update, with a backward through nothing but the parameters.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn.parallel import DistributedDataParallel

SAME_IN_ANY_ORDER: Final = 2
"""Ranks whose sum has no order."""


def settle_buckets(model: torch.nn.Module, world_size: int) -> None:
    """Has DDP lay out its buckets now, on all ranks together; where hooks on parameters would notice it does not.

    Args:
        model: wrapped for several ranks.
        world_size: how many.
    """
    if world_size <= SAME_IN_ANY_ORDER or not isinstance(model, DistributedDataParallel):
        return
    if model.find_unused_parameters or model.static_graph:  # the first keeps its layout, the second counts backwards
        return
    parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in parameters):
        return
    model.reducer.prepare_for_backward([])
    sums = [parameter.sum() for parameter in parameters]
    torch.autograd.backward(sums, [torch.zeros_like(value) for value in sums])
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
