"""What stands between a run and its uploads: what is queued, how long is waited for it, and what became of it."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from trainer_core import PluginError
from trainer_core_hub_push import content, repository
from trainer_core_hub_push.card import card_options, write_card
from trainer_core_hub_push.client import hub_api, in_words
from trainer_core_hub_push.entries import Entry, Push, files_in
from trainer_core_hub_push.outbox import Outbox, copy_files
from trainer_core_hub_push.patience import Patience
from trainer_core_hub_push.uploading import Uploader

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

    from trainer_core import Trainer
    from trainer_core_hub_push.settings import HubPushSettings

logger = logging.getLogger("trainer_core.hub_push")

CHECK_SECONDS: Final = 30.0
"""How long the check before training waits for the Hub."""
SAY_EVERY_SECONDS: Final = 15.0
"""Between two lines that say what the end of a run waits for."""


class Pusher:
    """The pushes of one output folder; on the main rank.

    Args:
        output_dir: whose outbox is used.
        settings: of the plugin.
    """

    def __init__(self, output_dir: Path, settings: HubPushSettings) -> None:
        self.output_dir = output_dir
        self.settings = settings
        self.outbox = Outbox(output_dir)
        self.uploader = Uploader(self.outbox, self._api_of, Patience.of(settings))
        self.not_queued: list[str] = []
        self._tokens: dict[str, str] = {}
        self._before = 0, 0

    def open(self) -> None:
        """Begins the account of a run, and goes on with what an earlier one left."""
        account = self.uploader.account
        self._before, self.not_queued = (account.done, account.replaced), []
        self.outbox.say_damage_again()
        if not self.uploader.is_active:
            self.outbox.tidy(staging=True)
        if left := self._entries():
            logger.warning("%s: holds %d pushes of an earlier run; they go first.", self.outbox.folder, len(left))
            self.uploader.begin()

    def refusal(self, push: Push, token: str | None = None) -> str:
        """Says why the Hub will not take a push; empty where it will, or is not reached, which is said."""
        api = hub_api(token or self.settings.plain_token)
        try:
            return _within(CHECK_SECONDS, lambda: repository.refusal(api, push, self.uploader.said_public))
        except Exception as error:
            told = in_words(error, repository.secret_of(api))
            logger.warning("the Hub cannot be asked, %s. Pushes are queued and tried again.", told)
            return ""

    def check(self, push: Push, options: Mapping[str, Any], token: str | None) -> None:
        """Refuses a push that the user asks for, before the model is saved.

        Raises:
            PluginError: the Hub will not take it.
            TypeError: the card has no such option.
        """
        card_options(options)
        if problem := self.refusal(push, token):
            raise PluginError(problem)

    def queue(self, push: Push, files: Mapping[str, Path]) -> Entry:
        """Queues files that are there, and begins to push."""
        entry = self.outbox.add(push, files)
        self.uploader.begin()
        return entry

    def queue_model(self, trainer: Trainer, push: Push, options: Mapping[str, Any], token: str | None = None) -> Entry:
        """Saves the model and writes its card, both into `output_dir` as well, queues them and begins to push.

        Args:
            trainer: whose model it is.
            push: where it goes.
            options: of the card.
            token: instead of that of the settings, for this push and as long as the process lives.
        """
        with ExitStack() as stack:
            try:
                staged = stack.enter_context(self.outbox.staging())
            except (OSError, PluginError):
                send_folder(trainer, "")
                raise
            send_folder(trainer, str(staged))
            write(trainer, staged)
            (staged / content.CARD).unlink(missing_ok=True)  # of the model's library, which knows nothing of the run
            copy_files(staged, self.output_dir, files_in(staged))
            self._add_card(trainer, staged, options)
            entry = self.outbox.seal(push, staged)
        if token is not None:
            self._tokens[entry.id] = token
        self.uploader.begin()
        return entry

    def _add_card(self, trainer: Trainer, staged: Path, options: Mapping[str, Any]) -> None:
        try:
            shutil.copyfile(write_card(trainer, self.output_dir, options), staged / content.CARD)
        except Exception as error:
            if options:
                raise
            logger.warning("the model card: cannot be written, %s. The model is pushed without it.", in_words(error))

    def future_of(self, entry: Entry) -> Future[CommitInfo | None]:
        """Gives what can be waited for; see `Uploader.future_of`."""
        future = self.uploader.future_of(entry)
        self.uploader.begin()
        return future

    def close(self, seconds: float) -> None:
        """Waits for what is queued, at most so long, and says what is left."""
        if self._entries():
            self.uploader.begin()
        deadline = monotonic() + seconds
        try:
            while not self.uploader.wait(max(0.0, min(SAY_EVERY_SECONDS, deadline - monotonic()))):
                if (left := deadline - monotonic()) <= 0:
                    break
                logger.warning("waiting for %s, %.0f s more at most.", self._waiting_in_words(), left)
        finally:
            self.uploader.stop()
            if self._entries():
                logger.warning("%s", self._left_in_words())

    def metrics(self) -> dict[str, float]:
        """Gives how many pushes of this run arrived, were replaced, and did not arrive."""
        account, (done, replaced) = self.uploader.account, self._before
        left = self._entries()  # first, as it may add to `not_queued`
        return {
            "pushes_done": account.done - done,
            "pushes_replaced": account.replaced - replaced,
            "pushes_failed": len(left) + len(self.not_queued),
        }

    def notes(self) -> Iterator[tuple[str, str]]:
        """Gives (label, text) on what became of the pushes."""
        numbers = self.metrics()
        replaced = f", {numbers['pushes_replaced']} replaced by newer ones" if numbers["pushes_replaced"] else ""
        if numbers["pushes_done"] or replaced:
            where = f", the last is {self.uploader.account.last_url}" if self.uploader.account.last_url else ""
            yield "pushed", f"{numbers['pushes_done']}{replaced}{where}"
        left = self._entries()
        for told in self.not_queued:
            yield "not pushed", told
        if left:
            yield "not pushed", self._left_in_words()

    def _entries(self) -> list[Entry]:
        """Gives what is queued; where that cannot be read, it is said once a run and counted as a push."""
        try:
            return self.outbox.entries()
        except (OSError, PluginError) as error:
            told = f"the outbox: cannot be read, {in_words(error)}"
            if told not in self.not_queued:
                self.not_queued.append(told)
                logger.warning("%s. The run goes on.", told)
            return []

    def _left_in_words(self) -> str:
        number, error = len(self._entries()), self.uploader.account.last_error
        what = f"{number} push{'es' if number > 1 else ''} did not arrive"
        return f"{what}{f', {error}' if error else ''}. {self.uploader.remedy()}"

    def _waiting_in_words(self) -> str:
        entries = self._entries()
        megabytes = sum(entry.num_bytes for entry in entries) / 1e6
        return f"{len(entries)} push{'es' if len(entries) != 1 else ''} of {megabytes:,.1f} MB"

    def _api_of(self, entry: Entry) -> HfApi:
        return hub_api(self._tokens.get(entry.id) or self.settings.plain_token)


def write(trainer: Trainer, folder: Path) -> None:
    """Writes the model, as the user may have overridden it; then it is called on all ranks, else on the main one."""
    from trainer_core import write_model

    if trainer.overrides("save_model"):
        trainer.save_model(folder)
    else:
        write_model(trainer.model, folder, trainer.processing_class)


def send_folder(trainer: Trainer, folder: str) -> str:
    """Gives the main rank's folder on every rank where all of them save the model; empty for none."""
    return str(trainer.ranks.from_main(folder)) if trainer.overrides("save_model") else ""


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Gives the result of `work`, or raises TimeoutError: the client itself waits for an answer for ever."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="trainer_core.hub_push check", daemon=True).start()
    return future.result(seconds)
