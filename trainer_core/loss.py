"""From a model and a batch to a loss.

A model gives its loss as the first item of a tuple, under `"loss"` in a mapping, as an attribute `loss`, or as a
scalar tensor. The loss of a micro-batch is a mean over its targets; how much it counts in an update is decided in
`step`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional

from trainer_core.data.batches import count_targets
from trainer_core.errors import DataError, ModelError

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

LossFunction = Callable[[Any, Any, "torch.Tensor | None"], torch.Tensor]
"""(outputs, labels, num_items_in_batch) -> loss."""


class Count(torch.Tensor):
    """The number of targets of a whole update, as a 0-dim tensor that notes whether anybody computed with it.

    A `compute_loss` or a model that divides a sum by this number has done the weighting of its micro-batch itself;
    one that ignores it gives a mean, which is weighted here. Nobody has to declare which of the two it is.
    """

    was_used: bool

    @staticmethod
    def of(value: torch.Tensor) -> Count:
        """Gives `value` (0-dim) as an unused count."""
        count: Count = value.as_subclass(Count)
        count.was_used = False
        return count

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs `func` on plain tensors and notes the use; looking at the count or its shape is none."""
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*map(_plain, args), **{name: _plain(value) for name, value in named.items()})
        name = getattr(func, "__name__", "")
        if name in _READS or (isinstance(result, torch.Tensor) and name not in _LOOKS):
            for argument in (*args, *named.values()):
                if type(argument) is Count:
                    argument.was_used = True
        return result


_READS: Final = frozenset(["item", "tolist", "numpy", "__array__", "__int__", "__index__", "__float__", "__complex__"])
"""What gives the number itself; other results that are no tensor are about the count, as a compiler asks for them."""
_COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")
_LOOKS: Final = frozenset(["__get__"] + [spelling for name in _COMPARISONS for spelling in (name, f"__{name}__")])
"""What gives a tensor and does not compute with a count: attributes and comparisons."""


def _plain(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if type(value) is Count else value


def call_model(model: nn.Module, inputs: Any, **more: Any) -> Any:
    """Calls `model` with a batch: mappings by keyword, tuples and lists by position, anything else as one argument.

    Raises:
        DataError: the batch does not fit the parameters of `forward`.
    """
    positional, named = _as_arguments(inputs)
    try:
        return model(*positional, **named, **more)
    except TypeError as error:
        refuse_misfit(model, inputs, error, **more)
        raise


def refuse_misfit(model: nn.Module, inputs: Any, error: TypeError, **more: Any) -> None:
    """Raises DataError where `error`, of calling `model` with a batch, comes of the parameters that `forward` has."""
    positional, named = _as_arguments(inputs)
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*positional, **named, **more)
    except TypeError as misfit:
        bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        got = ", ".join(map(str, named)) if named else describe(inputs)
        raise DataError(
            f"batch: does not fit the model, got {got} for forward{inspect.Signature(bare)}: {misfit}. "
            f"Give the dataset or data_collator the names that forward takes."
        ) from error


def _as_arguments(inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, tuple | list) else (inputs,)), {}


def loss_of(outputs: Any) -> torch.Tensor:
    """Gives the loss among a model's outputs.

    Raises:
        ModelError: there is none.
    """
    loss = find_loss(outputs)
    if not isinstance(loss, torch.Tensor):
        raise ModelError(
            f"model: returned no loss, got {describe(outputs)}. Return the loss first, under 'loss' or as an attribute "
            f"`loss` (does the batch hold labels?), or override Trainer.compute_loss."
        )
    return loss


def find_loss(outputs: Any) -> Any:
    """Gives the loss among `outputs`, or None."""
    if isinstance(outputs, torch.Tensor):
        return outputs if outputs.ndim == 0 else None
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    if isinstance(outputs, tuple | list):
        first = outputs[0] if outputs else None
        # of one dimension or more it may be the prediction for a batch of one
        return first if isinstance(first, torch.Tensor) and first.ndim == 0 else None
    return getattr(outputs, "loss", None)


def logits_of(outputs: Any) -> Any:
    """Gives the logits among a model's outputs: under `logits`, else what follows the loss, else the outputs."""
    if isinstance(outputs, Mapping):
        return outputs["logits"] if "logits" in outputs else next((v for k, v in outputs.items() if k != "loss"), None)
    if isinstance(outputs, tuple | list):
        rest = outputs[1:] if find_loss(outputs) is not None else outputs
        return rest[0] if rest else None
    return getattr(outputs, "logits", outputs)


def loss_and_outputs(trainer: Trainer, model: nn.Module, inputs: Any, count: torch.Tensor | None) -> tuple[Any, Any]:
    """Gives (mean loss, outputs) of a batch: a plugin's, by the user's function, with label smoothing, or the model's.

    Raises:
        ModelError: there is no loss, or no labels to compute it with.
    """
    asked = trainer.bus.ask("compute_loss", trainer=trainer, model=model, inputs=inputs)
    if asked is not None:
        return asked, call_model(model, _fitting(model, inputs, trainer.label_names))
    return own_loss_and_outputs(trainer, model, inputs, count)


def own_loss_and_outputs(
    trainer: Trainer, model: nn.Module, inputs: Any, count: torch.Tensor | None
) -> tuple[Any, Any]:
    """Gives (mean loss, outputs) of a batch as `loss_and_outputs` does where no plugin answers.

    Raises:
        ModelError: there is no loss, or no labels to compute it with.
    """
    factor = trainer.args.label_smoothing_factor
    if trainer.compute_loss_func is None and not factor:
        more = {"num_items_in_batch": count} if count is not None and takes_count(trainer.model) else {}
        outputs = call_model(model, inputs, **more)
        return loss_of(outputs), outputs
    labels, rest = split_labels(inputs, trainer.label_names)
    if trainer.compute_loss_func is not None:
        outputs = call_model(model, rest)
        return trainer.compute_loss_func(outputs, labels, count), outputs
    outputs = call_model(model, inputs)
    if not isinstance(labels, torch.Tensor):
        raise ModelError(
            "label_smoothing_factor: needs one label tensor in the batch. Set it to 0, or set label_names."
        )
    return smoothed_loss(outputs, labels, factor, shifted=trainer.is_shifted), outputs


def _fitting(model: nn.Module, inputs: Any, label_names: tuple[str, ...]) -> Any:
    """Gives what a model whose loss is computed by others takes of a batch: labels only if it has a place for them."""
    parameters = inspect.signature(model.forward).parameters.values()
    if isinstance(inputs, Mapping):
        known = {parameter.name for parameter in parameters}
        return {name: value for name, value in inputs.items() if name in known or name not in label_names}
    if isinstance(inputs, tuple | list) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return tuple(inputs[: sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)])
    return inputs


def split_labels(inputs: Any, label_names: tuple[str, ...]) -> tuple[Any, Any]:
    """Gives (labels, the rest) of a batch: by name in a mapping, the last item of a tuple of two or more."""
    if isinstance(inputs, Mapping):
        labels = tuple(inputs[name] for name in label_names if inputs.get(name) is not None)
        rest = {name: value for name, value in inputs.items() if name not in label_names}
        return (labels[0] if len(labels) == 1 else labels or None), rest
    if isinstance(inputs, tuple | list) and len(inputs) > 1:
        return inputs[-1], tuple(inputs[:-1])
    return None, inputs


def prediction_of(
    trainer: Trainer, model: nn.Module, inputs: Any, *, loss_only: bool, ignore_keys: Sequence[str] | None
) -> tuple[torch.Tensor | None, Any, Any]:
    """Gives (loss, logits, labels) of a batch; without labels the loss is what the model gives, or None."""
    labels, _ = split_labels(inputs, trainer.label_names)
    with torch.autocast(trainer.ranks.device.type, dtype=trainer.precision) if trainer.precision else nullcontext():
        if labels is not None:
            batch = dict(inputs) if isinstance(inputs, dict) else inputs
            loss, outputs = trainer.compute_loss(model, batch, True, **_count_of(trainer, inputs))
            loss = loss.detach().mean()
        else:
            outputs = call_model(model, inputs)
            loss = find_loss(outputs)
            loss = loss.detach().mean() if isinstance(loss, torch.Tensor) else None
    if loss_only:
        return loss, None, None
    return loss, _predictions(outputs, ignore_keys or ()), labels


def _count_of(trainer: Trainer, inputs: Any) -> dict[str, torch.Tensor]:
    """Gives the count of a batch, for a loss of the user's that may divide by it."""
    if not trainer.compute_loss_takes_count and trainer.compute_loss_func is None:
        return {}
    count = count_targets(inputs, trainer.label_names, shifted=trainer.is_shifted)
    return {"num_items_in_batch": torch.as_tensor(count, device=trainer.ranks.device)}


def _predictions(outputs: Any, ignore_keys: Sequence[str]) -> Any:
    """Gives a model's outputs but the loss: one tensor where there is one, else a tuple."""
    if isinstance(outputs, Mapping):
        kept = tuple(value for key, value in outputs.items() if key != "loss" and key not in ignore_keys)
    elif isinstance(outputs, tuple | list):
        kept = tuple(outputs[1:] if find_loss(outputs) is not None else outputs)
    else:
        kept = (logits_of(outputs),)
    return kept[0] if len(kept) == 1 else kept or None


def smoothed_loss(outputs: Any, labels: torch.Tensor, factor: float, *, shifted: bool) -> torch.Tensor:
    """Gives the cross entropy with label smoothing (Szegedy et al. 2016, section 7), mean over targets.

    Args:
        outputs: a model's outputs, with logits of shape (batch, ..., classes).
        labels: (batch, ...), -100 for positions that do not count.
        factor: weight of the uniform distribution, in 0..1.
        shifted: position i predicts label i + 1 (causal language models).
    """
    logits = logits_of(outputs)
    if shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100, label_smoothing=factor
    )


def check_loss(loss: Any) -> None:
    """Raises ModelError unless `loss` is one number that gradients can flow from."""
    if not isinstance(loss, torch.Tensor):
        raise ModelError(f"loss: must be a tensor, got {describe(loss)}. Return the loss itself from compute_loss.")
    if loss.numel() != 1:
        raise ModelError(f"loss: must be one number, got shape {tuple(loss.shape)}. Return its mean over the targets.")
    if not loss.requires_grad:
        raise ModelError(
            "loss: has no gradient, no parameter that requires one took part in it. "
            "Set requires_grad on the parameters to train, and compute the loss from the model's outputs."
        )


def takes(function: Callable[..., Any], name: str) -> bool:
    """Tells whether `function` has a parameter called `name`."""
    return name in inspect.signature(function).parameters


def is_shifted(model: nn.Module) -> bool:
    """Tells whether `model` is a causal language model of transformers, whose loss shifts the labels by one.

    Class names and `loss_type` do not tell (GPT2LMHeadModel has none, BartForCausalLM does not shift); the loss that
    its forward calls does.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator] # peft's
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    forwards = (vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind))
    codes = (getattr(inspect.unwrap(forward), "__code__", None) for forward in forwards)
    if not any("loss_function" in code.co_names for code in codes if code is not None):
        return False
    return getattr(model.loss_function, "__name__", "") == "ForCausalLMLoss"


def takes_count(model: nn.Module) -> bool:
    """Tells whether forward wants `num_items_in_batch`: by name, or as that of a transformers model by `**kwargs`."""
    parameters = inspect.signature(model.forward).parameters
    if "num_items_in_batch" in parameters:
        return True
    has_keywords = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return has_keywords and hasattr(model, "loss_function") and hasattr(model, "config")


def describe(value: Any) -> str:
    """Names a value's type, with keys or length where it has them."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}"
