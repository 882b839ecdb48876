"""What the constructor of `Trainer` is put together from: arguments that are checked, plugins that are registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from trainer_core.callbacks import CallbackPlugin, adapt
from trainer_core.data.collation import PaddingCollator, default_data_collator
from trainer_core.errors import ModelError, PluginError, SettingsError, did_you_mean
from trainer_core.metrics import problem_of
from trainer_core.process import own_random_states
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.discovery import installed_plugins
from trainer_core.settings.names import PLUGIN_OF_METHOD, distribution_of

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

_REMEDIES: Final = {
    "optimizer_cls_and_kwargs": "Pass optimizers=(optimizer, None), or override create_optimizer.",
    "compute_loss_fn": "Its name here is compute_loss_func.",
}


def check_arguments(trainer: Trainer, given: Mapping[str, Any], others: dict[str, Any]) -> list[Any]:
    """Checks the constructor's arguments and gives the callbacks that came as `callback=`.

    Raises:
        SettingsError: some are missing, unknown or contradict each other; all of them at once.
    """
    callbacks = others.pop("callback", None)
    problems = [_unknown(type(trainer), name) for name in others]
    problems += _problems_of_model(given["model"], given["model_init"])
    if not isinstance(trainer.args, TrainingArguments):
        problems.append(
            f"args: must be trainer_core's TrainingArguments, got {type(trainer.args).__module__}."
            f"{type(trainer.args).__qualname__}. Import it from trainer_core."
        )
    elif given["eval_dataset"] is None and not _overrides_eval_loader(trainer):
        problems += _problems_of_evaluation(trainer.args)
    if given["tokenizer"] is not None and given["processing_class"] is not None:
        problems.append("processing_class: is tokenizer by its newer name. Pass one of the two.")
    if given["compute_metrics"] is not None and (problem := problem_of(given["compute_metrics"])) is not None:
        problems.append(problem)
    for name in ("data_collator", "preprocess_logits_for_metrics", "compute_loss_func"):
        if given[name] is not None and not callable(given[name]):
            problems.append(f"{name}: must be callable, got {type(given[name]).__name__}. Pass a function.")
    for name in ("callbacks", "plugins"):
        if given[name] is not None and (isinstance(given[name], str) or not isinstance(given[name], Iterable)):
            problems.append(f"{name}: must be a list, got {type(given[name]).__name__}. Pass {name}=[...].")
    if trainer.overrides("compute_loss") and not _can_give_outputs(trainer.compute_loss):
        problems.append(
            "compute_loss: its override needs the argument `return_outputs`, evaluations ask for the outputs. "
            "Write compute_loss(self, model, inputs, return_outputs=False)."
        )
    problems += _problems_of_optimizers(given["optimizers"], given["model"], given["model_init"])
    if problems:
        raise SettingsError(problems)
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def new_model(trainer: Trainer) -> nn.Module:
    """Gives a model of the user's `model_init`, made from the run's seed; the caller's random states stay.

    Raises:
        ModelError: it gives no module.
    """
    assert trainer.model_init is not None
    with own_random_states(trainer.args.seed):
        parameters = inspect.signature(trainer.model_init).parameters.values()
        takes_trial = any(p.name == "trial" or (p.default is p.empty and p.kind in _POSITIONAL) for p in parameters)
        try:
            model = trainer.model_init(trainer.trial) if takes_trial else trainer.model_init()
        except Exception as error:
            error.add_note("raised in model_init")
            raise
    if not isinstance(model, nn.Module):
        raise ModelError(f"model_init: must return a torch.nn.Module, got {type(model).__name__}. Return the model.")
    return model


def default_collator(trainer: Trainer) -> Any:
    """Gives the collator for a user who passed none: padding with a tokenizer, else stacking."""
    tokenizer = trainer.processing_class
    return PaddingCollator(tokenizer) if hasattr(tokenizer, "pad") else default_data_collator


def register_plugins(trainer: Trainer, plugins: Iterable[object], callbacks: Iterable[Any]) -> None:
    """Puts on the bus: installed plugins whose section is present, the user's plugins, the user's callbacks.

    Raises:
        PluginError: one of them is none, or cannot be registered.
    """
    register_installed(trainer)
    register_given(trainer, plugins)
    for callback in callbacks:
        add_callback(trainer, callback)
    trainer.bus.compile()


def register_installed(trainer: Trainer, left_out: Collection[str] = ()) -> None:
    """Puts the installed plugins on the bus whose section is present, but those in `left_out`."""
    for name, kind in installed_plugins(trainer.args.block_plugins).items():
        section = trainer.args.section(name)
        if section is not None and name not in left_out:
            trainer.bus.register(kind(section), name)


def register_given(trainer: Trainer, plugins: Iterable[object]) -> None:
    """Puts plugins that were passed as objects on the bus.

    Raises:
        PluginError: one of them is a name or a class, or cannot be registered.
    """
    for plugin in plugins:
        if isinstance(plugin, str):
            raise PluginError(f"plugins: {plugin!r} is a name. Turn an installed plugin on in TrainingArguments.")
        if isinstance(plugin, type):
            raise PluginError(f"plugins: {plugin.__name__} is a class. Pass an instance, made with its settings.")
        trainer.bus.register(plugin, free_name(trainer, str(getattr(plugin, "name", type(plugin).__name__))))


def add_callback(trainer: Trainer, callback: Any) -> None:
    """Puts a callback (class or instance), or any object with hooks, on the bus."""
    kind = callback if isinstance(callback, type) else type(callback)
    name = free_name(trainer, kind.__name__)
    trainer.bus.register(adapt(callback, name), name)


def pop_callback(trainer: Trainer, wanted: Any) -> Any:
    """Takes the first callback that is `wanted` (name, class or instance) off the bus and gives it, or None."""
    for name, member in list(trainer.bus.members.items()):
        plugin = member.plugin
        own = plugin.callback if isinstance(plugin, CallbackPlugin) else plugin
        if name == wanted or own is wanted or (isinstance(wanted, type) and type(own) is wanted):
            trainer.bus.unregister(name)
            return own
    return None


def free_name(trainer: Trainer, name: str) -> str:
    """Gives `name`, with a number behind it where it is taken."""
    names = trainer.bus.members
    number = 2
    free = name
    while free in names:
        free, number = f"{name}-{number}", number + 1
    return free


def ask_plugin(trainer: Trainer, hook: str, method: str, **context: Any) -> Any:
    """Asks the plugin that does the work of one of Trainer's methods.

    Raises:
        PluginError: there is none.
    """
    if not trainer.bus.listens(hook):
        plugin = PLUGIN_OF_METHOD[method]
        raise PluginError(
            f"{method}: no plugin does this. Install {distribution_of(plugin)} or unblock {plugin!r}, "
            f"or pass a plugin with the hook {hook}."
        )
    return trainer.bus.ask(hook, trainer=trainer, **context)


def check_train_arguments(others: Mapping[str, Any]) -> None:
    """Refuses arguments that `train` does not have.

    Raises:
        SettingsError: there is any.
    """
    if others:
        known = ("resume_from_checkpoint", "trial", "ignore_keys_for_eval")
        raise SettingsError(
            [
                f"train: unknown argument {name!r}.{did_you_mean(name, known)} It takes {', '.join(known)}."
                for name in others
            ]
        )


def _unknown(kind: type, name: str) -> str:
    known = list(dict.fromkeys(parameter for base in kind.__mro__ for parameter in _named_parameters(base)))
    if name in TrainingArguments.model_fields:
        return f"{name}: is a setting, not an argument of {kind.__name__}. Pass it to TrainingArguments."
    remedy = _REMEDIES.get(name, f"Arguments are {', '.join(known)}.")
    return f"{name}: is no argument of {kind.__name__}.{did_you_mean(name, known)} {remedy}"


def _named_parameters(kind: type) -> list[str]:
    """Gives the parameters of a class's own constructor that have a name."""
    own = vars(kind).get("__init__")
    parameters = inspect.signature(own).parameters.values() if inspect.isfunction(own) else ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.kind not in variable and one.name != "self"]


def _problems_of_model(model: Any, model_init: Any) -> list[str]:
    if model is None and model_init is None:
        return ["model: is missing. Pass a torch.nn.Module as model, or a function that makes one as model_init."]
    if model is not None and model_init is not None:
        return ["model_init: contradicts model. Pass one of the two."]
    if isinstance(model, type):
        return [f"model: {model.__name__} is a class. Pass an instance of it, or the class as model_init."]
    if isinstance(model_init, nn.Module):
        return [f"model_init: is a model already, {type(model_init).__name__}. Pass it as model."]
    if model is not None and not isinstance(model, nn.Module):
        return [f"model: must be a torch.nn.Module, got {type(model).__name__}. Pass the module itself."]
    if model_init is not None and not callable(model_init):
        return [f"model_init: must be callable, got {type(model_init).__name__}. Pass a function that makes the model."]
    return []


def _problems_of_evaluation(args: TrainingArguments) -> list[str]:
    if args.eval_strategy != "no":
        setting, off = f"eval_strategy is {args.eval_strategy!r}", "eval_strategy='no'"
    elif args.eval_on_start:
        setting, off = "eval_on_start is True", "eval_on_start=False"
    else:
        return []
    return [f"eval_dataset: is needed, {setting}. Pass one, or set {off}."]


def _problems_of_optimizers(optimizers: Any, model: Any, model_init: Any) -> list[str]:
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        return ["optimizers: must be (optimizer, scheduler). Pass (optimizer, None) to have the scheduler made."]
    optimizer, scheduler = optimizers
    problems = []
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        problems.append(
            f"optimizers: the first must be a torch optimizer, got {type(optimizer).__name__}. Pass one, or None."
        )
    if scheduler is not None and not hasattr(scheduler, "step"):
        problems.append(
            f"optimizers: the second must be a scheduler, got {type(scheduler).__name__}. Pass one, or None."
        )
    if isinstance(optimizer, torch.optim.Optimizer) and isinstance(model, nn.Module):
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            problems.append("optimizers: the optimizer holds no parameter of the model. Make it from this model's.")
    driven = getattr(scheduler, "optimizer", None)
    if driven is not None and driven is not optimizer:
        problems.append("optimizers: the scheduler drives another optimizer. Pass (its own optimizer, scheduler).")
    if optimizer is not None and model_init is not None:
        problems.append("optimizers: hold parameters of a model that model_init makes anew. Override create_optimizer.")
    return problems


def _can_give_outputs(compute_loss: Callable[..., Any]) -> bool:
    parameters = inspect.signature(compute_loss).parameters.values()
    is_open = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    return is_open or any(p.name == "return_outputs" for p in parameters)


def _overrides_eval_loader(trainer: Trainer) -> bool:
    return trainer.overrides("get_eval_dataloader") or trainer.overrides("evaluate")
