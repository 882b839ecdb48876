"""The settings of the plugin."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field, SecretStr, field_validator

from trainer_core import Change, Section
from trainer_core_hub_push import checks

if TYPE_CHECKING:
    from trainer_core import TrainingArguments

logger = logging.getLogger("trainer_core.hub_push")

Strategy = Literal["end", "every_save", "checkpoint", "all_checkpoints"]

_NAME: Final = r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?<![.-])(?<!\.git)"
REPO: Final = re.compile(rf"({_NAME}/)?{_NAME}")
"""A repository, `name` or `owner/name`, as the Hub takes it."""
OWNER: Final = re.compile(_NAME)
_MASKED: Final = re.compile(r"\*+")
_DEFAULT: Final = "default"


class HubPushSettings(Section):
    """What is pushed to the Hub, where to, and when."""

    on_by_default: ClassVar[bool] = True
    flat: ClassVar[Mapping[str, str]] = {
        "push_to_hub": "push",
        "hub_model_id": "model_id",
        "hub_strategy": "strategy",
        "hub_token": "token",
        "hub_private_repo": "private_repo",
        "hub_revision": "revision",
        "hub_always_push": "always_push",
        "push_to_hub_organization": "organization",
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "hug_strategy": "hub_strategy",
        "push_to_hub_model_id": "hub_model_id",
        "push_to_hub_token": "hub_token",
    }
    warn_aliases: ClassVar[frozenset[str]] = frozenset(aliases)
    when_changed: ClassVar[Mapping[str, Change]] = {
        "push": Change.said(),
        "model_id": Change.said(),
        "strategy": Change.said(),
        "token": Change.free(),
        "private_repo": Change.free(),
        "revision": Change.said(),
        "always_push": Change.free(),
        "organization": Change.said(),
        "flush_timeout_seconds": Change.free(),
        "retries": Change.free(),
        "backoff_seconds": Change.free(),
        "max_backoff_seconds": Change.free(),
    }

    push: bool = False
    """Whether `train()` pushes; `push_to_hub()`, the card and resuming from a repository work without it."""
    model_id: str | None = None
    """Repository, `name` or `owner/name`; None for the name of `output_dir`, owned by whom the token belongs to."""
    strategy: Strategy = "every_save"
    """What is pushed while a run trains: nothing, the model at every save, also the checkpoint as `last-checkpoint`,
    or also each checkpoint under its own name. All of them push model and card at the end."""
    token: SecretStr | None = None
    """Token of the Hub; None for HF_TOKEN or that of the login."""
    private_repo: bool | None = None
    """Whether a repository that is made is private; None for what its owner has set as default."""
    revision: str | None = None
    """Branch to push to, made where it is missing; None for the repository's main one."""
    always_push: bool = False
    """Whether a push is made although a newer one that replaces it is queued already."""
    organization: str | None = None
    """Owner of the repository where `model_id` names none; None for whom the token belongs to."""
    flush_timeout_seconds: float = Field(600.0, ge=0)
    """Seconds that the end of a run waits at most for what is still queued; 0 for not at all."""
    retries: int = Field(6, ge=0)
    """How often an upload that failed for a passing cause is tried again, before it waits for the next push."""
    backoff_seconds: float = Field(1.0, gt=0)
    """Seconds before the first of these tries; each further one waits twice as long."""
    max_backoff_seconds: float = Field(60.0, gt=0)
    """Seconds between two tries at most, unless the Hub asks for more."""

    @field_validator("model_id")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        if value is not None and not REPO.fullmatch(value):
            raise ValueError("is no name of a repository. Write 'name' or 'owner/name' with letters, digits and . _ -.")
        return value

    @field_validator("organization")
    @classmethod
    def _is_owner(cls, value: str | None) -> str | None:
        if value is not None and not OWNER.fullmatch(value):
            raise ValueError("is no name of an owner. Write letters, digits and . _ -.")
        return value

    @field_validator("revision")
    @classmethod
    def _is_branch(cls, value: str | None) -> str | None:
        if value is not None and not checks.is_branch(value):
            raise ValueError(f"{checks.NO_BRANCH}. {checks.AS_GIT}")
        return value

    @field_validator("token")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        """Takes away the blanks around it, as they come with a file or a paste; nothing but blanks is none."""
        stripped = "" if value is None else value.get_secret_value().strip()
        if stripped and not checks.is_token(stripped):
            raise ValueError(f"{checks.MALFORMED}. {checks.COPY_AGAIN}")
        return SecretStr(stripped) if stripped else None

    @field_validator("token")
    @classmethod
    def _is_not_masked(cls, value: SecretStr | None) -> SecretStr | None:
        """Takes a token that was masked when the settings were written for none."""
        if value is None or not _MASKED.fullmatch(value.get_secret_value()):
            return value
        logger.warning("hub_token: is masked, that of HF_TOKEN or the login is used. Pass hub_token to use another.")
        return None

    def contradictions(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what cannot be meant together."""
        owner, _, name = (self.model_id or "").rpartition("/")
        if self.organization is not None and owner not in ("", self.organization):
            what = f"contradicts hub_model_id={self.model_id!r}"
            yield _told(args, "push_to_hub_organization", what, f"Set hub_model_id='{self.organization}/{name}'.")
        if self.push:
            yield from self._of_pushing(args)
            return
        for flat in ("hub_strategy", "hub_always_push"):
            if _is_given(args, flat):
                remedy = "Set push_to_hub=True, or leave it out."
                yield _told(args, flat, "has no effect with push_to_hub=False", remedy)

    def _of_pushing(self, args: TrainingArguments) -> Iterator[str]:
        saves = getattr(args, "save_strategy", None) != "no" or getattr(args, "load_best_model_at_end", False)
        if self.strategy != "end" and not saves:
            remedy = "Set save_strategy, or hub_strategy='end'."
            yield _told(args, "hub_strategy", "needs saves, and save_strategy is 'no'", remedy)
        if self.model_id is None and not REPO.fullmatch(self.repo_id(args)):
            what = "is needed, the name of output_dir is no name of a repository"
            yield f"hub_model_id: {what}, got {self.repo_id(args)!r}. Set hub_model_id to 'owner/name'."

    def repo_id(self, args: TrainingArguments) -> str:
        """Gives the repository, without an owner where nothing names one."""
        name = self.model_id if self.model_id is not None else Path(args.output_dir).absolute().name
        return f"{self.organization}/{name}" if self.organization is not None and "/" not in name else name

    @property
    def plain_token(self) -> str | None:
        """The token as the Hub takes it; None for that of the environment or the login."""
        return None if self.token is None else self.token.get_secret_value()


def _is_given(args: TrainingArguments, flat: str) -> bool:
    """Tells whether somebody meant an option: gave it by its flat name, or another value than the default.

    A whole section that was given, as `to_dict` writes it, names every field.
    """
    by_name = args.sources[flat] != _DEFAULT and args.sources["hub_push"] == _DEFAULT
    return by_name or getattr(args, flat) != HubPushSettings.model_fields[HubPushSettings.flat[flat]].default


def _told(args: TrainingArguments, flat: str, what: str, remedy: str) -> str:
    source = args.sources[flat]
    given = "" if source == _DEFAULT else f" (from {source})"
    return f"{flat}: {what}, got {getattr(args, flat)!r}{given}. {remedy}"
