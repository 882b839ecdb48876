"""The plugin: when something is pushed, and how the run's questions about the Hub are answered.

What it does by itself while a run trains is best effort: an error is said and counted, and the run goes on. What the
user asks for (`push_to_hub`, `create_model_card`, resuming from a repository) raises; therefore the plugin as a whole
is a critical one, and keeps its own errors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_core import Phase, hookimpl
from trainer_core_hub_push import content
from trainer_core_hub_push.checks import checked_options
from trainer_core_hub_push.client import in_words
from trainer_core_hub_push.settings import HubPushSettings

if TYPE_CHECKING:
    from trainer_core import Plan, Section, Trainer
    from trainer_core_hub_push.entries import Push
    from trainer_core_hub_push.pusher import Pusher

logger = logging.getLogger("trainer_core.hub_push")

END: Final = "End of training"
GRACE_SECONDS: Final = 10.0
"""How long a run that was interrupted or failed waits at most for what is queued."""


class HubPush:
    """Pushes a run to the Hub."""

    settings_type: ClassVar[type[Section]] = HubPushSettings
    fires_in_replay: ClassVar[bool] = False

    def __init__(self, settings: HubPushSettings) -> None:
        self.settings = settings
        self._pusher: Pusher | None = None
        self._is_beginning = False

    # Before training

    def on_phase(self, phase: Phase) -> None:
        """Notes whether a run is about to begin: a plan that is only asked for changes nothing."""
        self._is_beginning = phase is Phase.INIT

    @hookimpl(trylast=True)
    def on_plan(self, trainer: Trainer, plan: Plan) -> None:
        """Adds the pushes; when a run begins, refuses what the Hub would refuse, and makes the repository."""
        if not self.settings.push:
            return
        if self.settings.strategy != "end" and not trainer.bus.listens("write_checkpoint"):
            plan.contradict(
                f"hub_strategy: needs saves, and no plugin writes checkpoints, got {self.settings.strategy!r}. "
                f"Turn checkpointing on, or set hub_strategy='end'."
            )
        self._schedule(trainer, plan)
        if self._is_beginning and not plan.contradictions:
            push = content.push_of_model(trainer, self.settings, END)
            mine = self._pusher_of(trainer).refusal(push) if trainer.is_main_rank else ""
            if problem := trainer.ranks.from_main(mine):
                plan.contradict(problem)

    def _schedule(self, trainer: Trainer, plan: Plan) -> None:
        saves = [entry.steps for entry in plan.scheduled if entry.what == "save"]
        is_known = self.settings.strategy == "end" or all(steps is not None for steps in saves)
        before = [] if self.settings.strategy == "end" else plan.steps_of("save")
        steps = sorted({*before, plan.max_steps}) if is_known else None
        plan.schedule("push", "hub_strategy", steps, f"to {self.settings.repo_id(trainer.args)}")

    def on_train_begin(self, trainer: Trainer) -> None:
        """Goes on with what an earlier run in this folder left to push."""
        if self.settings.push and trainer.is_main_rank:
            with self._best_effort(trainer, "the outbox"):
                self._pusher_of(trainer).open()

    # While it trains, and at the end

    def on_save(self, trainer: Trainer, checkpoint: Path) -> None:
        """Queues what the strategy says, whole, so that the checkpoint may go."""
        if not (self.settings.push and trainer.is_main_rank) or self.settings.strategy == "end":
            return
        trainer.bus.tell("on_push_begin", trainer=trainer)
        with self._best_effort(trainer, checkpoint.name):
            for push, files in content.pushes_of_save(trainer, self.settings, checkpoint):
                self._pusher_of(trainer).queue(push, files)

    def on_train_end(self, trainer: Trainer) -> None:
        """Queues the model and its card, unless the run was cut short and is to go on."""
        if not self.settings.push or trainer.outcome == "interrupted":
            return
        if not trainer.is_main_rank:
            _save_with_main(trainer)
            return
        trainer.bus.tell("on_push_begin", trainer=trainer)
        with self._best_effort(trainer, "the model"):
            push = content.push_of_model(trainer, self.settings, END)
            self._pusher_of(trainer).queue_model(trainer, push, {})

    def on_teardown(self, trainer: Trainer) -> None:
        """Waits for what is queued, as long as the settings say, and accounts for it."""
        self._is_beginning, pusher = False, self._pusher
        if pusher is None:
            return
        with self._best_effort(trainer, "the end"):
            pusher.close(self._seconds_to_wait(trainer))
        if self.settings.push:
            trainer.train_metrics |= pusher.metrics()

    def closing_notes(self) -> Iterator[tuple[str, str]]:
        """Gives (label, text) for the summary of the run."""
        if self._pusher is not None:
            yield from self._pusher.notes()

    def _seconds_to_wait(self, trainer: Trainer) -> float:
        seconds = self.settings.flush_timeout_seconds
        if trainer.ranks.world_size > 1:  # the others wait for this rank in their next exchange, until that times out
            seconds = min(seconds, trainer.args.ddp_timeout / 2)
        return seconds if trainer.outcome in ("completed", "stopped") else min(seconds, GRACE_SECONDS)

    # What is asked for

    def push(self, trainer: Trainer, commit_message: str, blocking: bool, options: Mapping[str, Any]) -> Any | None:
        """Pushes the model and its card, from the main rank; `options` may hold `token`, `revision`, `private`."""
        from trainer_core_hub_push.pusher import send_folder

        of_card = checked_options(commit_message, options)  # on every rank, so that all of them raise
        token = of_card.pop("token")
        if not trainer.is_main_rank:
            _save_with_main(trainer)
            return None
        pusher = self._pusher_of(trainer)
        push = _changed(content.push_of_model(trainer, self.settings, commit_message), of_card)
        if token is not None:
            push = replace(push, key="")  # it may go to another owner's
        try:
            pusher.check(push, of_card, token)
        except Exception:
            send_folder(trainer, "")
            raise
        trainer.bus.tell("on_push_begin", trainer=trainer)
        future = pusher.future_of(pusher.queue_model(trainer, push, of_card, token))
        return future.result() if blocking else future

    def write_model_card(self, trainer: Trainer, options: Mapping[str, Any]) -> Path:
        """Writes the card into `output_dir`, on the main rank."""
        from trainer_core_hub_push.card import write_card

        folder = Path(trainer.args.output_dir)
        return write_card(trainer, folder, options) if trainer.is_main_rank else folder / content.CARD

    def fetch_checkpoint(self, trainer: Trainer, source: str) -> Path | None:
        """Fetches a checkpoint from a repository."""
        from trainer_core_hub_push import pulling

        return pulling.fetch_checkpoint(trainer, source, token=self.settings.plain_token)

    # Help

    def _pusher_of(self, trainer: Trainer) -> Pusher:
        from trainer_core_hub_push.pusher import Pusher

        output_dir = Path(trainer.args.output_dir)
        if self._pusher is None or self._pusher.output_dir != output_dir:
            self._pusher = Pusher(output_dir, self.settings)
        return self._pusher

    @contextmanager
    def _best_effort(self, trainer: Trainer, what: str) -> Iterator[None]:
        """Says an error and keeps it for the summary; the run goes on."""
        try:
            yield
        except Exception as error:
            told = f"{what} of step {trainer.state.global_step}: {in_words(error, self.settings.plain_token)}"
            logger.warning("%s. The run goes on.", told)
            if self._pusher is not None:
                self._pusher.not_queued.append(told)


def _changed(push: Push, options: dict[str, Any]) -> Push:
    """Gives a push with what `options` say of it, and takes that out of them."""
    changes = {name: options.pop(name) for name in ("revision", "private") if name in options}
    return replace(push, **changes)


def _save_with_main(trainer: Trainer) -> None:
    """Saves the model with the main rank, where the user's own `save_model` may need all of them."""
    from trainer_core_hub_push.pusher import send_folder

    if folder := send_folder(trainer, ""):
        trainer.save_model(folder)
