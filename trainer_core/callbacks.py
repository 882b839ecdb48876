"""Callbacks in the guide's form, on the bus.

A `TrainerCallback` has methods named after events, each called as `event(args, state, control, **context)`. It asks
for things by setting flags of `control`, or by returning a mapping of flags; they become requests with the callback
as author. Callbacks written for transformers work as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from trainer_core.errors import PluginError, did_you_mean
from trainer_core.hookspecs import HOOKS
from trainer_core.phases import Signal

if TYPE_CHECKING:
    from trainer_core.trainer import Trainer

EVENTS: Final = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
    "on_push_begin",
)

CONTEXT: Final = frozenset(
    {
        "model",
        "tokenizer",
        "processing_class",
        "optimizer",
        "lr_scheduler",
        "train_dataloader",
        "eval_dataloader",
        "metrics",
        "logs",
    }
)
"""What events get by keyword; `metrics` and `logs` where they belong."""


@dataclass(slots=True)
class TrainerControl:
    """Flags by which callbacks ask for things; each is lowered when it was read. It takes no other attribute."""

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False


class TrainerCallback:
    """Base of callbacks; override the events of `EVENTS` that matter.

    Every event is called with `args`, `state`, `control` and, by keyword, `model`, `tokenizer`, `processing_class`,
    `optimizer`, `lr_scheduler`, `train_dataloader`, `eval_dataloader`, and `metrics` or `logs` where they belong.
    It may return nothing, the control, or a mapping of control flags.
    """


def _nothing(self: TrainerCallback, args: Any, state: Any, control: TrainerControl, **context: Any) -> None:
    """Does nothing; an event that is not overridden is never called."""


for _event in EVENTS:
    setattr(TrainerCallback, _event, _nothing)

_SIGNALS: Final = {
    "should_training_stop": Signal.STOP,
    "should_epoch_stop": Signal.EPOCH_END,
    "should_save": Signal.SAVE,
    "should_evaluate": Signal.EVAL,
}


def is_callback(candidate: object) -> bool:
    """Tells whether `candidate` is a callback in the guide's form: ours, or one written for transformers."""
    kind = candidate if isinstance(candidate, type) else type(candidate)
    return any(base.__name__ == "TrainerCallback" for base in kind.__mro__)


class CallbackPlugin:
    """A callback as a plugin: its overridden events are hooks, its flags are requests.

    Args:
        callback: the object in the guide's form.
        name: on the bus, and author of its requests.
    """

    decides_alone = True
    """What it asks for may differ from rank to rank (a clock, a local file): ranks agree after every update."""

    def __init__(self, callback: object, name: str) -> None:
        self.callback = callback
        self.name = name
        self.critical = getattr(callback, "critical", True)
        self.before, self.after = getattr(callback, "before", ()), getattr(callback, "after", ())
        for event in EVENTS:
            function = getattr(callback, event, None)
            if function is not None and not _is_inherited(callback, event):
                setattr(self, event, self._hook(event, function))
        _refuse_misspelt(callback, name)
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            self.state_dict = callback.state_dict
            self.load_state_dict = callback.load_state_dict
            self.state_version = getattr(callback, "state_version", 1)
            if hasattr(callback, "migrate_state_dict"):
                self.migrate_state_dict = callback.migrate_state_dict
        elif hasattr(callback, "state") and hasattr(callback, "from_state"):
            self.state_dict = callback.state
            self.load_state_dict = self._load_exported

    def _load_exported(self, state: Mapping[str, Any]) -> None:
        """Takes over what transformers' exportable state holds; its arguments stay those that the user passed now."""
        for attribute, value in state["attributes"].items():
            setattr(self.callback, attribute, value)

    def _hook(self, event: str, function: Callable[..., Any]) -> Callable[..., None]:
        function = _taking_what_it_names(function, event, self.name)

        def with_metrics(trainer: Trainer, metrics: Any) -> None:
            self._call(trainer, event, function, metrics=metrics)

        def with_logs(trainer: Trainer, logs: Any) -> None:
            row = {name: value for name, value in logs.items() if name != "step"}  # the original adds it afterwards
            self._call(trainer, event, function, logs=row)

        def plain(trainer: Trainer) -> None:
            self._call(trainer, event, function)

        if event in ("on_evaluate", "on_predict"):
            return with_metrics
        return with_logs if event == "on_log" else plain

    def _call(self, trainer: Trainer, event: str, function: Callable[..., Any], **more: Any) -> None:
        control = trainer.control
        answer = function(trainer.args, trainer.state, control, **trainer.callback_context(), **more)
        if answer is not None and answer is not control:
            self._take(control, answer, event)
        self._request(trainer, control, event)

    def _take(self, control: TrainerControl, answer: object, event: str) -> None:
        """Copies the flags that a callback returned into the trainer's control."""
        known = [field.name for field in fields(TrainerControl)]
        if isinstance(answer, Mapping):
            for flag, value in answer.items():
                if flag not in known:
                    raise PluginError(
                        f"callback {self.name!r}, {event}: returned the flag {flag!r}.{did_you_mean(str(flag), known)} "
                        f"Flags are {', '.join(known)}."
                    )
                if not hasattr(value, "__bool__"):  # what is true because it is not empty is no answer: "false"
                    raise PluginError(
                        f"callback {self.name!r}, {event}: returned a flag {flag!r} that is neither true nor false, "
                        f"got {value!r}. Use True or False."
                    )
                setattr(control, flag, bool(value))
        elif all(hasattr(answer, flag) for flag in known):
            for flag in known:
                setattr(control, flag, bool(getattr(answer, flag)))
        else:
            raise PluginError(
                f"callback {self.name!r}, {event}: returned {type(answer).__name__}. "
                f"Return nothing, the control, or a mapping of its flags."
            )

    def _request(self, trainer: Trainer, control: TrainerControl, event: str) -> None:
        """Turns raised flags into requests and lowers them; before a run and when it ends there is nothing to ask."""
        is_heard = trainer.is_in_train and event != "on_train_end"
        for flag, signal in _SIGNALS.items():
            if getattr(control, flag):
                setattr(control, flag, False)
                if is_heard:
                    trainer.request(signal, by=self.name, why=f"{flag} in {event}", local=True)
        if control.should_log:
            control.should_log = False
            if is_heard:
                _ask_for_row(trainer)


def _ask_for_row(trainer: Trainer) -> None:
    """Logs a row: at once, or on all ranks at the next boundary, because the flag may be raised on one alone."""
    if trainer.running is not None and trainer.ranks.world_size > 1:
        trainer.running.loop.agreement.wants_row = True
    else:
        trainer.log_training_row()


def _taking_what_it_names(function: Callable[..., Any], event: str, name: str) -> Callable[..., Any]:
    """Gives an event that ignores what the callback's method does not take of the keyword context.

    Raises:
        PluginError: it does not take args, state and control.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return function  # of a C extension: nothing is known
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} & CONTEXT

    def event_of_fewer(args: Any, state: Any, control: Any, **context: Any) -> Any:
        return function(args, state, control, **{key: value for key, value in context.items() if key in named})

    try:
        signature.bind(None, None, None, **dict.fromkeys(named))
    except TypeError:
        raise PluginError(
            f"callback {name!r}: {event} must take args, state and control, and of the rest only what there is, got "
            f"{event}{signature}. Write {event}(self, args, state, control, **kwargs)."
        ) from None
    return event_of_fewer


def adapt(candidate: object, name: str) -> object:
    """Gives a plugin for a callback (class or instance) or for any object with hook methods."""
    instance = _made(candidate, name) if isinstance(candidate, type) else candidate
    if is_callback(instance):
        return CallbackPlugin(instance, name)
    if not any(attribute in HOOKS for attribute in dir(instance)):
        raise PluginError(
            f"callbacks: {name!r} is no callback and has no hook, got {type(instance).__name__}. "
            f"Pass a TrainerCallback (class or instance) or an object with methods named like hooks."
        )
    return instance


def _made(kind: type, name: str) -> object:
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise PluginError(f"callbacks: {name!r} is a class that needs arguments, {error}. Pass an instance.") from None
    return kind()


def _refuse_misspelt(callback: object, name: str) -> None:
    bases = [base for base in type(callback).__mro__ if base.__name__ == "TrainerCallback"]
    for event in dir(callback):
        is_known = event in EVENTS or any(hasattr(base, event) for base in bases)
        if event.startswith("on_") and not is_known and callable(getattr(callback, event)):
            hint = did_you_mean(event, EVENTS) or f" Events are {', '.join(EVENTS)}."
            raise PluginError(f"callback {name!r}: there is no event {event!r}.{hint}")


def _is_inherited(callback: object, event: str) -> bool:
    """Tells whether an event comes from a base called TrainerCallback, where it does nothing."""
    if event in vars(callback):
        return False
    owner = next((base for base in type(callback).__mro__ if event in vars(base)), None)
    return owner is None or owner.__name__ == "TrainerCallback"
