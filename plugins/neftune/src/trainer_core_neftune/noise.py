"""The noise itself, and the hooks that put it on a model."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from trainer_core import ModelError
from trainer_core_neftune.calls import Call, CallReader, same_memory
from trainer_core_neftune.compilation import uncompiled

logger = logging.getLogger("trainer_core.neftune")

REMEMBERED: Final = 16
"""Embedded batches whose masks are kept: activation checkpointing embeds a batch again in the backward pass."""


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
        return (noise * (alpha / math.sqrt(max(length * width, 1)))).to(embedded.dtype)
    tokens = (mask != 0).to(noise)
    bounds = alpha * torch.rsqrt(tokens.sum(dim=1).clamp(min=1) * width)
    return (noise * (bounds[:, None] * tokens)[..., None]).to(embedded.dtype)


class Noise:
    """The hooks of one run on one model.

    Args:
        model: whose forward gets the attention mask.
        embeddings: whose output gets the noise, by name.
        alpha: strength.
    """

    def __init__(self, model: nn.Module, embeddings: Mapping[str, nn.Module], alpha: float) -> None:
        self.alpha = alpha
        self._names = ", ".join(map(repr, embeddings))
        self._reader = CallReader(model)
        self._open: list[Call] = []
        self._seen: deque[tuple[Any, Any]] = deque(maxlen=REMEMBERED)
        self._said: set[str] = set()
        look, leave, add = (_Hook(uncompiled(function)) for function in (self.look, self.leave, self.add))
        self._handles = [
            model.register_forward_pre_hook(look, with_kwargs=True),
            model.register_forward_hook(leave, always_call=True),
            *(embedding.register_forward_hook(add, with_kwargs=True) for embedding in embeddings.values()),
        ]

    def remove(self) -> None:
        """Takes all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._open.clear()
        self._seen.clear()

    def look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the arguments of a call of the model."""
        call = self._reader.read(args, kwargs)
        self._open.append(call)
        if model.training and call.arguments.get("inputs_embeds") is not None:
            call.was_noised = True  # nothing more is to be said of it
            self._say("inputs that come as inputs_embeds pass the embedding by and get no noise.")

    def leave(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Forgets a call of the model; says where the noise that was asked for did not come."""
        call = self._open.pop()
        is_learning = model.training and torch.is_grad_enabled() and outputs is not None
        if is_learning and not call.was_noised:
            self._say(
                f"the model was called without calling {self._names} in training mode, so there was no noise. "
                f"Name a module that it calls: neftune={{'embedding_module': '...'}}."
            )

    def add(
        self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], embedded: Any
    ) -> torch.Tensor | None:
        """Gives the output of the embedding with noise, in training; what has no gradient does not train."""
        if not embedding.training or not torch.is_grad_enabled():
            return None
        if not isinstance(embedded, torch.Tensor) or embedded.dim() != 3 or not embedded.is_floating_point():
            got = f"{embedded.dtype} {tuple(embedded.shape)}" if isinstance(embedded, torch.Tensor) else type(embedded)
            raise ModelError(
                f"neftune: the embedding {type(embedding).__name__} must give floats (batch, sequence, width), "
                f"got {got}. Name another module: neftune={{'embedding_module': '...'}}."
            )
        tokens = args[0] if args else next(iter(kwargs.values()), None)
        mask = self._fitting_mask(self._mask_of(tokens), embedded)
        return embedded + uniform_noise(embedded, mask, self.alpha)

    def _mask_of(self, tokens: Any) -> Any:
        """Gives the mask of the call that is open; outside of one, that which these tokens had when it was."""
        if not self._open:
            return next((mask for seen, mask in reversed(self._seen) if same_memory(tokens, seen)), None)
        call = self._open[-1]
        call.was_noised = True
        mask = call.mask_of(tokens)
        self._seen.append((tokens, mask))
        return mask

    def _fitting_mask(self, mask: Any, embedded: torch.Tensor) -> torch.Tensor | None:
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
