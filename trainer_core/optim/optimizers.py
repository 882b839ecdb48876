"""Optimizers by name, their parameter groups, and the calls on them that a run makes.

torch decorates `Optimizer.add_param_group`, `state_dict`, `load_state_dict` and `step` so that the compiler leaves
them alone; the first call of any imports `torch._dynamo` (1.1 s of CPU, 70 MB). The functions here call what is
under the decoration, so that a run that compiles nothing never pays for the compiler.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from trainer_core.errors import ModelError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments

logger = logging.getLogger("trainer_core.optim")

SomeOptimizer = TypeVar("SomeOptimizer", bound=Optimizer)


@dataclass(frozen=True)
class OptimizerKind:
    """What a name in `optim` stands for."""

    build: type[Optimizer]
    options: Mapping[str, object] = field(default_factory=dict)
    """Set before `optim_args`, which may change them."""
    takes_adam_options: bool = False
    """Whether `adam_beta1`, `adam_beta2` and `adam_epsilon` are its own."""


OPTIMIZERS: Final[Mapping[str, OptimizerKind]] = {
    "adamw_torch_fused": OptimizerKind(torch.optim.AdamW, {"fused": True}, takes_adam_options=True),
    "adamw_torch": OptimizerKind(torch.optim.AdamW, takes_adam_options=True),
    "sgd": OptimizerKind(torch.optim.SGD),
    "rmsprop": OptimizerKind(torch.optim.RMSprop),
    "adagrad": OptimizerKind(torch.optim.Adagrad),
    # torch scales a step by max(eps[1], RMS of the parameter); 1.0 makes `learning_rate` the step's size, as the
    # original's scale_parameter=False does, for every parameter whose RMS is at most 1.
    "adafactor": OptimizerKind(torch.optim.Adafactor, {"eps": (1e-18, 1.0)}),
}

# Arguments of torch's constructors that `optim_args` may not set, with what sets them.
OWNED_OPTIONS: Final[Mapping[str, str]] = {
    "params": "Override create_optimizer to choose parameters.",
    "lr": "Set learning_rate.",
    "weight_decay": "Set weight_decay.",
    "differentiable": "Pass optimizers=(optimizer, None) to differentiate through the optimizer.",
}
ADAM_OPTIONS: Final[Mapping[str, str]] = {
    "betas": "Set adam_beta1 and adam_beta2.",
    "eps": "Set adam_epsilon.",
}

# Where torch has a fused kernel for AdamW, and for which parameters.
FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "xpu", "mps"})
FUSED_DTYPES: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

NORM_LAYERS: Final = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm, lazy and synchronized ones too
)


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Gives the names of the parameters that decay: all but biases and those of normalization layers."""
    spared = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    return [name for name, p in model.named_parameters() if "bias" not in name and id(p) not in spared]


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__
    return isinstance(module, NORM_LAYERS) or name.endswith("Norm") or "RMSNorm" in name


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Gives the groups to optimize: parameters that decay, then those that do not; an empty group is left out.

    Without `weight_decay` nothing tells the two apart and there is one group, in the model's order: a group more
    costs a step 11 us. Frozen parameters are left out, shared ones stand once.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weight_decay:
        return [{"params": list(trainable.values()), "weight_decay": 0.0}] if trainable else []
    decays = set(decay_parameter_names(model))
    groups: list[dict[str, object]] = [
        {"params": [p for name, p in trainable.items() if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable.items() if name not in decays], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(model: nn.Module, args: TrainingArguments, device: torch.device) -> Optimizer:
    """Gives the optimizer that `args.optim` names, over the model's trainable parameters.

    Raises:
        SettingsError: the name is unknown, or `optim_args` or the Adam settings do not fit the optimizer.
        ModelError: no parameter requires a gradient.
    """
    kind = OPTIMIZERS.get(args.optim)
    if kind is None:
        hint = did_you_mean(args.optim, OPTIMIZERS)
        raise SettingsError([f"optim: unknown optimizer, got {args.optim!r}.{hint} Use one of {_listed(OPTIMIZERS)}."])
    groups = parameter_groups(model, args.weight_decay)
    if not groups:
        raise ModelError("model: no parameter requires a gradient, got 0 trainable parameters. Unfreeze some.")
    options = _options(kind, args)
    if options.get("fused") and not _is_fused_offered((p for p in model.parameters() if p.requires_grad), device):
        logger.info("optim: torch has no fused kernel for these parameters; %s runs unfused", args.optim)
        del options["fused"]
    try:
        return construct_optimizer(kind.build, groups, lr=args.learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"optim: {kind.build.__name__} refuses its settings: {error}, got {options}. Correct optim_args."
        raise SettingsError([problem]) from error


def _is_fused_offered(parameters: Iterable[Tensor], device: torch.device) -> bool:
    found = {(p.device, p.dtype) for p in parameters}
    return (
        device.type in FUSED_DEVICES
        and len({place for place, _ in found}) == 1
        and all(place.type in FUSED_DEVICES and dtype in FUSED_DTYPES for place, dtype in found)
    )


def _options(kind: OptimizerKind, args: TrainingArguments) -> dict[str, object]:
    """Gives the constructor's arguments, but for parameters, learning rate and decay."""
    given, problems = _parse_optim_args(args.optim_args or "")
    defaults = {name: p.default for name, p in inspect.signature(kind.build.__init__).parameters.items()}
    owned = {**OWNED_OPTIONS, **(ADAM_OPTIONS if kind.takes_adam_options else {})}
    accepted = {name: value for name, value in defaults.items() if name != "self" and name not in owned}
    for name, value in given.items():
        if name in owned:
            problems.append(f"optim_args.{name}: is not set here, got {value!r}. {owned[name]}")
        elif name not in accepted:
            known = f"{did_you_mean(name, accepted)} {args.optim!r} takes {_listed(accepted)}."
            problems.append(f"optim_args.{name}: unknown option, got {value!r}.{known}")
    options = {**kind.options, **given}
    if kind.takes_adam_options:
        options |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    else:
        problems += _needless_adam_options(args)
    if problems:
        raise SettingsError(problems)
    return options


def _needless_adam_options(args: TrainingArguments) -> list[str]:
    takers = _listed(name for name, kind in OPTIMIZERS.items() if kind.takes_adam_options)
    values = {"adam_beta1": args.adam_beta1, "adam_beta2": args.adam_beta2, "adam_epsilon": args.adam_epsilon}
    sources = {name: args.sources.get(name, "default") for name in values}
    return [
        f"{name}: {args.optim!r} has no such setting, got {value!r} (from {sources[name]}). "
        f"Leave it out, or use optim={takers}."
        for name, value in values.items()
        if sources[name] != "default"
    ]


def _parse_optim_args(text: str) -> tuple[dict[str, object], list[str]]:
    """Gives the options in `key=value,key=value` and what is wrong with the rest; `(a, b)` is one value."""
    options: dict[str, object] = {}
    problems = []
    for item in filter(None, (part.strip() for part in re.split(r",(?![^(]*\))", text))):
        name, equals, value = (part.strip() for part in item.partition("="))
        try:
            options[name] = ast.literal_eval(value.title() if value.lower() in {"true", "false", "none"} else value)
        except (ValueError, SyntaxError):
            wrong = "value is not a number, true, false or none" if equals else "an option has no value"
            problems.append(f"optim_args: {wrong}, got {item!r}. Write it as 'key=value,key=value'.")
    return options, problems


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no options"


def construct_optimizer(
    build: type[SomeOptimizer], groups: Iterable[dict[str, object]], **options: object
) -> SomeOptimizer:
    """Gives `build(groups, **options)` without importing torch._dynamo.

    The undecorated `add_param_group` stands on the instance while its constructor runs and is gone afterwards.
    """
    plain = getattr(Optimizer.add_param_group, "__wrapped__", None)
    if plain is None or build.add_param_group is not Optimizer.add_param_group:
        constructor: Callable[..., SomeOptimizer] = build
        return constructor(groups, **options)
    optimizer = build.__new__(build)
    initialize: Callable[..., None] = build.__init__
    optimizer.__dict__["add_param_group"] = MethodType(plain, optimizer)
    try:
        initialize(optimizer, groups, **options)
    finally:
        del optimizer.__dict__["add_param_group"]
    return optimizer


def optimizer_state_dict(optimizer: Optimizer) -> dict[str, object]:
    """Gives `optimizer.state_dict()`; the tensors are the optimizer's own, not copies."""
    state: dict[str, object] = _undecorated(optimizer, "state_dict")()
    return state


def load_optimizer_state_dict(optimizer: Optimizer, state: Mapping[str, object]) -> None:
    """Does `optimizer.load_state_dict(state)`; a tensor that fits in place and type becomes the optimizer's own.

    Raises:
        ValueError, KeyError: it is no state of such an optimizer.
    """
    is_known = type(optimizer).__module__.startswith("torch.optim.")  # what others keep is theirs to check
    if is_known:
        _check_options(optimizer, state)
    _undecorated(optimizer, "load_state_dict")(dict(state))
    if is_known and not isinstance(optimizer, _OF_OTHER_SHAPES):
        _check_shapes(optimizer)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                # fused kernels go over the memory of parameter and state side by side, whatever their strides say
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_options(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raises ValueError where an option of a group is of another kind than the optimizer's own."""
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):  # the number is torch's to say
        for name in (own.keys() & group.keys()) - {"params", "foreach", "fused"}:  # these two may be None or not
            if not _is_like(group[name], own[name]):
                raise ValueError(f"{name} cannot be {group[name]!r}")


def _is_like(value: object, own: object) -> bool:
    """Tells whether an option may have `value`, given what the optimizer has itself."""
    if own is None:
        return True
    if isinstance(own, bool):
        return isinstance(value, bool)
    if isinstance(own, int | float | Tensor):
        return isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(own) and all(map(_is_like, value, own))
    return True


def _check_shapes(optimizer: Optimizer) -> None:
    """Raises ValueError where a tensor of the state is neither one number nor of its parameter's shape."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)} for {tuple(parameter.shape)}")


_OF_OTHER_SHAPES: Final = (torch.optim.Adafactor, torch.optim.LBFGS)
"""Optimizers of torch with state of other shapes than that of the parameters."""


def _undecorated(optimizer: Optimizer, name: str) -> Callable[..., dict[str, object]]:
    """Gives a method without torch's decoration, unless a subclass has its own."""
    function = getattr(type(optimizer), name)
    if function is not getattr(Optimizer, name) or name in vars(optimizer):
        method: Callable[..., dict[str, object]] = getattr(optimizer, name)
        return method
    return MethodType(getattr(function, "__wrapped__", function), optimizer)


def raw_step(optimizer: Optimizer) -> Callable[[], None]:
    """Gives a function that does `optimizer.step()` for a third less time on small models.

    Left out are torch's profiler range, hook loops and compiler guard. A hook that is registered later, or a running
    profiler, is seen at the next call, which then goes through `optimizer.step()`. So does every call when the
    step is not torch's own (a subclass or a patched instance), needs a closure or is differentiable.
    """
    function = type(optimizer).step
    patch = vars(optimizer).get("step")
    counted = getattr(patch, "_wrapped_by_lr_sched", False) and getattr(patch, "__wrapped__", None) is function
    foreign = not function.__module__.startswith("torch.optim.") or (patch is not None and not counted)
    if foreign or isinstance(optimizer, torch.optim.LBFGS) or optimizer.defaults.get("differentiable"):
        return partial(_call_step, optimizer)
    if counted:
        vars(optimizer)["_opt_called"] = True  # what the patch of torch's schedulers is for: the order of first calls
    return _build_raw_step(optimizer, inspect.unwrap(function))


def _call_step(optimizer: Optimizer) -> None:
    optimizer.step()


def _build_raw_step(optimizer: Optimizer, function: Callable[[Optimizer], object]) -> Callable[[], None]:
    before, after = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    all_before, all_after = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    is_grad_enabled, set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled

    def step() -> None:
        if before or after or all_before or all_after or profiler._is_profiler_enabled:
            optimizer.step()
            return
        grad_enabled = is_grad_enabled()
        set_grad_enabled(False)
        try:
            function(optimizer)
        finally:
            set_grad_enabled(grad_enabled)

    return step
