"""Which modules embed the input."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from trainer_core import ModelError


def embeddings_of(model: nn.Module, name: str | None) -> dict[str, nn.Module]:
    """Gives the module called `name`, or else the model's input embeddings, by name.

    Encoder and decoder of one vocabulary may each have a module around one weight; these count as one another.

    Raises:
        ModelError: there is none.
    """
    if name is not None:
        return {name: _named(model, name)}
    found = _input_embeddings(model)
    weight, parts = getattr(found, "weight", None), set(found.modules())
    twins = {
        place: module
        for place, module in model.named_modules()
        if module is found or (isinstance(module, nn.Embedding) and module.weight is weight and module not in parts)
    }
    return twins if found in twins.values() else {type(found).__name__: found, **twins}


def _input_embeddings(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_input_embeddings", None)
    got = type(model).__name__
    try:
        found = None if getter is None else getter()
    except (NotImplementedError, AttributeError) as error:  # a base class leaves it to others, or guesses a name
        found, got = None, f"{got}, whose get_input_embeddings() raises {error!r}"
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"neftune: the model has no input embeddings, got {got}. "
            f"Name the module whose output gets the noise: neftune={{'embedding_module': '...'}}."
        )
    return found


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules or not name:
        near = [place for place in modules if place.endswith(f".{name}")] or get_close_matches(name, modules, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        own = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"neftune.embedding_module: the model has no such module, got {name!r}.{hint} Its parts are {own}."
        )
    return modules[name]
