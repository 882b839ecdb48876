"""The noise itself, and the two hooks that put it on a model."""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer_core import ModelError

logger = logging.getLogger("trainer_core.neftune")


def uniform_noise(embedded: torch.Tensor, mask: torch.Tensor | None, alpha: float) -> torch.Tensor:
    """Gives noise for embedded tokens: uniform within ±alpha / sqrt(L d) for a row of L tokens of width d.

    Source: Jain et al., NEFTune: Noisy Embeddings Improve Instruction Finetuning, arXiv 2310.05914, algorithm 1.

    Args:
        embedded: (batch, sequence, width).
        mask: (batch, sequence), not 0 where there is a token: L counts these, and the others get no noise. None for
            rows that are all tokens.
        alpha: strength.

    Returns:
        (batch, sequence, width), of the type of `embedded`; drawn in float32 from torch's own generator.
    """
    noise = torch.empty(embedded.shape, dtype=torch.float32, device=embedded.device).uniform_(-1, 1)
    length, width = embedded.shape[1:]
    if mask is None:
        return (noise * (alpha / math.sqrt(length * width))).to(embedded.dtype)
    tokens = (mask != 0).to(noise)
    bounds = alpha * torch.rsqrt(tokens.sum(dim=1).clamp(min=1) * width)
    return (noise * (bounds[:, None] * tokens)[..., None]).to(embedded.dtype)


class Noise:
    """The hooks of one run on one model.

    Args:
        model: whose forward gets the attention mask.
        embedding: whose output gets the noise.
        alpha: strength.
    """

    def __init__(self, model: nn.Module, embedding: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self._mask: torch.Tensor | None = None
        self._said: set[str] = set()
        self._signature = inspect.signature(model.forward)
        self._handles = [
            model.register_forward_pre_hook(_Hook(_uncompiled(self.look)), with_kwargs=True),
            embedding.register_forward_hook(_Hook(_uncompiled(self.add))),
        ]

    def remove(self) -> None:
        """Takes both hooks off."""
        for handle in self._handles:
            handle.remove()
        self._mask = None

    def look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the attention mask of a call of the model."""
        if args:
            kwargs = self._signature.bind_partial(*args, **kwargs).arguments
        self._mask = kwargs.get("attention_mask")
        if model.training and kwargs.get("inputs_embeds") is not None:
            self._say("inputs that come as inputs_embeds pass the embedding by and get no noise.")

    def add(self, embedding: nn.Module, args: tuple[Any, ...], embedded: Any) -> torch.Tensor | None:
        """Gives the output of the embedding with noise, in training."""
        if not embedding.training:
            return None
        if not isinstance(embedded, torch.Tensor) or embedded.dim() != 3 or not embedded.is_floating_point():
            got = f"{embedded.dtype} {tuple(embedded.shape)}" if isinstance(embedded, torch.Tensor) else type(embedded)
            raise ModelError(
                f"neftune: the embedding {type(embedding).__name__} must give floats (batch, sequence, width), "
                f"got {got}. Name another module: neftune={{'embedding_module': '...'}}."
            )
        return embedded + uniform_noise(embedded, self._fitting_mask(embedded), self.alpha)

    def _fitting_mask(self, embedded: torch.Tensor) -> torch.Tensor | None:
        mask = self._mask
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor) or mask.shape != embedded.shape[:2]:
            self._say("the attention mask is not (batch, sequence); rows count with their padding, which gets noise.")
            return None
        return mask.to(embedded.device)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("neftune: %s", what)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a compiler from tracing a hook, which draws and remembers; costs nothing where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return function
    kept: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call] # torch's
    return kept


class _Hook:
    """A hook that a copy of the model does not take along."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


def _nothing(*args: Any) -> None:
    return None
