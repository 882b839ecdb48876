"""Hooks that come and go on a model that is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a compiler from tracing a hook, which draws and remembers; costs nothing where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return function
    kept: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call] # torch's
    return kept


def forget_graphs(model: nn.Module) -> None:
    """Lets a model that is compiled be compiled anew: a graph of it without hooks does not see that there are some."""
    if any(_is_compiled(module) for module in model.modules()):
        torch.compiler.reset()


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
