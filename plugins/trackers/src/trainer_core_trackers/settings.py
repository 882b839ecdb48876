"""The settings of the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from trainer_core import Change, Section
from trainer_core_trackers.known import KNOWN, check_name, chosen, options_of

if TYPE_CHECKING:
    from trainer_core import TrainingArguments


def _only_names(value: object) -> object:
    items = value if isinstance(value, list | tuple) else [value]
    if value is not None and not all(isinstance(item, str) for item in items):
        raise ValueError(
            "must be names of trackers. Register the class of a tracker of your own with "
            "accelerate.tracking.register_tracker_class, and give its name"
        )
    return value


def _trackers(value: str | list[str] | None) -> str | list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) and "," in value:
        value = [name.strip() for name in value.split(",") if name.strip()]
    names = [value] if isinstance(value, str) else value
    if not names:
        raise ValueError("names no tracker. Leave the section out to have none")
    if "none" in names:
        raise ValueError("names trackers and 'none'. Keep one" if len(names) > 1 else "is none. Leave the section out")
    for name in names:
        if name != "all":
            check_name(name)
    return value


Text = Annotated[str, Field(min_length=1)]

OPTIONS: Final = (
    "run_name",
    "logging_dir",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
)
"""Options that act in some trackers only."""


class TrackersSettings(Section):
    """Which trackers a run reports to, and what they are told."""

    switch: ClassVar[str | None] = "report_to"
    flat: ClassVar[Mapping[str, str]] = {name: name for name in ("report_to", *OPTIONS)}
    when_changed: ClassVar[Mapping[str, Change]] = dict.fromkeys(("report_to", *OPTIONS, "init_kwargs"), Change.free())

    report_to: Annotated[str | list[str] | None, BeforeValidator(_only_names), AfterValidator(_trackers)] = None
    """Names of trackers, or "all" for every installed one; None, "none" and [] turn the plugin off."""
    run_name: Text | None = None
    """Name of the run; None leaves it to the tracker, and to time and host for TensorBoard's folder."""
    logging_dir: Text | None = None
    """Folder of TensorBoard's files, and of Aim's repository; None for a folder in `output_dir`."""
    project: Text | None = None
    """Project or experiment that the run belongs to; None for the tracker's own environment variable, else
    "huggingface"."""
    trackio_space_id: Text | None = None
    """Space of the Hub that Trackio logs to while the run goes on; None for a local database."""
    trackio_bucket_id: Text | None = None
    """Bucket of the Hub that holds the data of Trackio's Spaces; None for the one that Trackio chooses."""
    trackio_static_space_id: Text | Literal[False] | None = None
    """Static Space of the Hub that is made of the project when a run is done; None and False for none."""
    init_kwargs: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Tracker -> further keywords of its own init, for example `{"wandb": {"mode": "offline"}}`."""

    @property
    def names(self) -> list[str]:
        """The trackers that are meant, each once."""
        return [] if self.report_to is None else chosen(self.report_to)

    def contradictions(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what cannot be meant together: options that no tracker of this run can act on."""
        if self.report_to is None:
            yield "trackers: names no tracker, got report_to=None. Set report_to, or leave the section out."
            return
        for option in OPTIONS:
            value = getattr(self, option)
            if value is not None and not any(option in options_of(name) for name in self.names):
                able = [name for name in KNOWN if option in KNOWN[name].options]
                what = f"acts in {', '.join(able)} only, and report_to={self.report_to!r} has none of them"
                yield f"{option}: {what}, got {value!r}{_source(args, option)}. Leave it out, or add one to report_to."
        if self.trackio_bucket_id is not None and not (self.trackio_space_id or self.trackio_static_space_id):
            what = f"holds the data of a Space, and there is none, got {self.trackio_bucket_id!r}"
            remedy = "Set trackio_space_id or trackio_static_space_id"
            yield f"trackio_bucket_id: {what}{_source(args, 'trackio_bucket_id')}. {remedy}."
        yield from self._escape(args)
        yield from self._doubled_keywords()

    def _escape(self, args: TrainingArguments) -> Iterator[str]:
        """Gives what is wrong with a name that TensorBoard would take for a folder somewhere else."""
        name = PurePath(self.run_name or "")
        if "tensorboard" in self.names and (name.is_absolute() or ".." in name.parts):
            what = f"is a folder of TensorBoard in {str(tensorboard_base(self, args.output_dir))!r}, and must lie there"
            remedy = "Leave '..' and a leading '/' out, or set logging_dir to have it elsewhere"
            yield f"run_name: {what}, got {self.run_name!r}{_source(args, 'run_name')}. {remedy}."

    def _doubled_keywords(self) -> Iterator[str]:
        for name, keywords in self.init_kwargs.items():
            if name not in self.names:
                yield f"init_kwargs.{name}: report_to={self.report_to!r} has no such tracker. Leave it out, or add it."
                continue
            for option, keyword in options_of(name).items():
                if keyword and keyword in keywords:
                    yield f"init_kwargs.{name}.{keyword}: is {option} by another name. Set {option} instead."


def tensorboard_base(settings: TrackersSettings, output_dir: str | Path) -> Path:
    """Gives the folder in which TensorBoard's runs lie."""
    return Path(settings.logging_dir) if settings.logging_dir is not None else Path(output_dir) / "runs"


def _source(args: TrainingArguments, option: str) -> str:
    source = args.sources.get(option, "default")
    return "" if source == "default" else f" (from {source})"
