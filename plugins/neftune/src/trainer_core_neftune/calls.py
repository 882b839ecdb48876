"""What is known of one call of the model: its arguments by name, and which attention mask belongs to which tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(slots=True, eq=False)
class Call:
    """One call of the model.

    Attributes:
        arguments: by name.
        has_decoder: encoder and decoder of the model have tokens and masks of their own.
        was_noised: some embedding got noise in it.
    """

    arguments: Mapping[str, Any]
    has_decoder: bool
    was_noised: bool = False

    def mask_of(self, tokens: Any) -> Any:
        """Gives the attention mask of `tokens`, or None.

        A decoder's tokens may be made of the labels within the model; what is not the encoder's is the decoder's.
        """
        is_decoders = self.has_decoder and not same_memory(tokens, self.arguments.get("input_ids"))
        return self.arguments.get("decoder_attention_mask" if is_decoders else "attention_mask")


class CallReader:
    """Reads calls of a model.

    Args:
        model: it, or what wraps it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._signature = inspect.signature(_with_named_arguments(model).forward)
        self._has_decoder = "decoder_attention_mask" in self._signature.parameters

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Gives what a call says; arguments by position get the names that forward has for them."""
        if not args:
            return Call(kwargs, self._has_decoder)
        try:
            named = self._signature.bind_partial(*args).arguments
        except TypeError:  # more arguments than forward takes, which it is about to say itself
            named = {}
        return Call({**named, **kwargs}, self._has_decoder)


def same_memory(one: Any, other: Any) -> bool:
    """Tells whether two values are tensors over the same elements: one of them may be a view."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    return one is other or (one.data_ptr() == other.data_ptr() and one.numel() == other.numel())


def _with_named_arguments(model: nn.Module) -> nn.Module:
    """Gives the model whose forward names its arguments; compiled ones and some of PEFT's take `*args`."""
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "_orig_mod", None)  # type: ignore[operator] # PEFT's
    return model if inner is None or inner is model else _with_named_arguments(inner)
