"""Which module embeds the input."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from trainer_core import ModelError


def embedding_of(model: nn.Module, name: str | None) -> nn.Module:
    """Gives the module called `name`, or else the model's input embeddings.

    Raises:
        ModelError: there is none.
    """
    return _input_embeddings(model) if name is None else _named(model, name)


def _input_embeddings(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        found = None if getter is None else getter()
    except NotImplementedError:  # a base class that leaves it to its subclasses
        found = None
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"neftune: the model has no input embeddings, got {type(model).__name__}. "
            f"Name the module whose output gets the noise: neftune={{'embedding_module': '...'}}."
        )
    return found


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules or not name:
        near = get_close_matches(name, modules, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        own = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"neftune.embedding_module: the model has no such module, got {name!r}.{hint} Its parts are {own}."
        )
    return modules[name]
