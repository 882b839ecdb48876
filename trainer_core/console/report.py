"""What the console says before and after a run: a headline and labelled lines, made once and shown in any form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from trainer_core.best import best_metric_name
from trainer_core.console.sparkline import sparkline
from trainer_core.console.wording import (
    in_seconds,
    joined,
    number,
    parts_of,
    path_text,
    printable,
    rate,
    share,
    shortened,
)
from trainer_core.phases import Phase
from trainer_core.settings.provenance import DERIVED
from trainer_core.settings.secrecy import mask_text
from trainer_core.settings.section import DEFAULT, shown

if TYPE_CHECKING:
    from trainer_core.settings.arguments import TrainingArguments
    from trainer_core.trainer import Trainer

LISTED_SETTINGS: Final = 6
"""Settings that are listed before the rest is only counted."""
LEAST_SHARE: Final = 0.005
"""Share of a run's time from which a phase or plugin is named in its account."""
CURVE_WIDTH: Final = 40
"""Characters of the loss curve."""
LONGEST_ERROR: Final = 200
"""Characters of an error's first line."""

Mood = Literal["plain", "good", "pause", "bad"]
MARKS: Final[Mapping[Mood, str]] = {"plain": "", "good": "✓ ", "pause": "■ ", "bad": "✗ "}


@dataclass(frozen=True)
class Report:
    """A headline and lines of (label, text)."""

    headline: str
    lines: list[tuple[str, str]]
    mood: Mood = "plain"

    @property
    def title(self) -> str:
        """The headline with the mark of its mood."""
        return MARKS[self.mood] + self.headline


@dataclass
class Record:
    """What the console remembers of one run.

    Attributes:
        first_step: updates that were done before it.
        checkpoint: the newest checkpoint that the run wrote or came from.
        checkpoint_step: the update that it holds.
        error: what ended the run.
    """

    first_step: int = 0
    checkpoint: Path | None = None
    checkpoint_step: int = -1
    error: BaseException | None = None


def opening(trainer: Trainer, record: Record) -> Report:
    """Gives the plan, the settings that differ from the defaults, and where a resumed run goes on."""
    lines = [("output", path_text(trainer.args.output_dir))]
    if record.first_step:
        lines.append(("resumed", f"{_named(record.checkpoint)}, {record.first_step:,} updates are done"))
    if trainer.last_plan is not None:
        lines += [(label, printable(text)) for label, text in trainer.last_plan.rows()]
    if settings := settings_in_words(trainer.args):
        lines.append(("settings", settings))
    device = trainer.ranks.device.type
    return Report(f"Training {type(trainer.model).__name__} on {device}", lines)


def settings_in_words(args: TrainingArguments) -> str:
    """Gives the settings that somebody gave, with who gave them, and counts those that are too many to list."""
    given = list(_given(args))
    sources: dict[str, list[str]] = {}
    for name, value, source in given[:LISTED_SETTINGS]:
        sources.setdefault(source, []).append(f"{name}={shortened(printable(_setting(name, value)))}")
    more = f", +{len(given) - LISTED_SETTINGS} more" if len(given) > LISTED_SETTINGS else ""
    return "; ".join(f"{', '.join(values)} ({source})" for source, values in sources.items()) + more


def _given(args: TrainingArguments) -> Iterator[tuple[str, object, str]]:
    for name, source in args.sources.items():
        if source == DEFAULT or source.startswith(DERIVED) or name == "output_dir":
            continue
        section, _, field_name = name.partition(".")
        if name in type(args).model_fields:
            yield name, getattr(args, name), source
        elif field_name and section in args.sections:
            yield name, getattr(args.sections[section], field_name), source


def _setting(name: str, value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(name, value)


def closing(trainer: Trainer, record: Record, *, levels: str) -> Report:
    """Gives how the run ended and why, what came of it, where its time went, and how to go on.

    Args:
        trainer: its run is over, the time of its phases complete.
        record: what the console remembers.
        levels: characters of the loss curve.
    """
    headline, mood = _outcome(trainer, record)
    lines = [*_results(trainer, levels), *_troubles(trainer), *_notes_of_plugins(trainer), *_times(trainer)]
    if record.checkpoint is not None:
        lines.append(("checkpoint", path_text(record.checkpoint)))
    if resume := resume_call(trainer, record):
        lines.append(("resume", f"{resume} goes on after step {record.checkpoint_step:,}"))
    return Report(headline, [(label, printable(text)) for label, text in lines], mood)


def resume_call(trainer: Trainer, record: Record) -> str:
    """Gives the Python call that goes on with a run that was cut short; empty where there is nothing to go on from."""
    if record.checkpoint is None or trainer.outcome not in ("interrupted", "failed"):
        return ""
    is_at_home = record.checkpoint.resolve().parent == Path(trainer.args.output_dir).resolve()
    return f"trainer.train(resume_from_checkpoint={True if is_at_home else str(record.checkpoint)!r})"


def _outcome(trainer: Trainer, record: Record) -> tuple[str, Mood]:
    state, request = trainer.state, trainer.stop_request
    assert trainer.running is not None
    total = sum(trainer.running.loop.journal.seconds.values())
    where = f"step {state.global_step:,} of {state.max_steps:,}"
    if trainer.outcome == "completed":
        epochs = f"{state.epoch:.4g} {'epoch' if state.epoch == 1 else 'epochs'}"
        return f"Completed {state.global_step:,} steps, {epochs} in {in_seconds(total)}", "good"
    if trainer.outcome == "stopped" and request is not None:
        return f"Stopped by {request.by} at {where} after {in_seconds(total)}: {printable(request.why)}", "good"
    if trainer.outcome == "interrupted" and request is not None:
        saved = "saved" if record.checkpoint_step == state.global_step else "not saved"
        return f"Interrupted by {request.by} at {where} after {in_seconds(total)}, {saved}", "pause"
    if isinstance(record.error, KeyboardInterrupt):
        return f"Interrupted at {where} after {in_seconds(total)}: {printable(str(record.error))}", "pause"
    return f"Failed at {where} after {in_seconds(total)}: {error_in_words(record.error)}", "bad"


def error_in_words(error: BaseException | None) -> str:
    """Gives an error's type and the first line of its message."""
    if error is None:
        return "unknown"
    first, _, _ = mask_text(str(error)).strip().partition("\n")
    return shortened(printable(f"{type(error).__name__}: {first}" if first else type(error).__name__), LONGEST_ERROR)


def _results(trainer: Trainer, levels: str) -> Iterator[tuple[str, str]]:
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    if len(losses) > 1:
        curve = sparkline(losses, CURVE_WIDTH, levels=levels)
        yield "loss", f"{number(losses[0])} {curve} {number(losses[-1])}"
    metrics = trainer.train_metrics
    if trainer.outcome != "failed" and metrics:
        loss, samples = metrics["train_loss"], metrics["train_samples_per_second"]
        steps = metrics["train_steps_per_second"]
        tokens = metrics.get("train_tokens_per_second")
        counted = f"  {rate(tokens)} tokens/s" if tokens is not None else ""
        yield "training", f"loss {number(loss)}  {rate(samples)} samples/s  {rate(steps)} steps/s{counted}"
    step, rows = _last_evaluation(trainer)
    for row in rows:
        name = f" {row[0]}" if row[0] else ""
        yield f"evaluation{name}", f"{row[1]}  after step {step:,}"
    state = trainer.state
    if state.best_metric is not None:
        value = f"{best_metric_name(trainer)} {number(state.best_metric)} after step {state.best_global_step or 0:,}"
        where = f", in {Path(state.best_model_checkpoint).name}" if state.best_model_checkpoint else ""
        loaded = ", its weights are loaded" if trainer.loaded_best_from is not None else ""
        yield "best", value + where + loaded


def _last_evaluation(trainer: Trainer) -> tuple[int, list[tuple[str, str]]]:
    """Gives the step of the last evaluation, and (name of the dataset, metrics) for each dataset."""
    step = trainer.state.last_eval_step
    found: list[tuple[str, str]] = []
    for row in reversed(trainer.state.log_history if step >= 0 else []):
        if row.get("step", step) < step:
            break
        if row.get("step") == step and "eval_runtime" in row:
            return step, [("", joined(part for part in parts_of(row) if part.name != "in"))]
        prefix = next((name for name in row if name.startswith("eval_") and name.endswith("_runtime")), "")
        if prefix:
            dataset = prefix.removeprefix("eval_").removesuffix("_runtime")
            found.insert(0, (dataset, joined(part for part in parts_of(row) if part.name != "in")))
    return step, found


def _troubles(trainer: Trainer) -> Iterator[tuple[str, str]]:
    assert trainer.running is not None
    stepper = getattr(trainer.running.loop, "stepper", None)
    if stepper is not None and stepper.guard.num_skipped:
        yield "skipped", f"{stepper.guard.num_skipped:,} updates whose loss was not finite"
    for member in trainer.bus.members.values():
        if member.failures:
            end = "it was switched off" if member.is_off else "the run went on"
            yield "trouble", f"{member.name} failed {member.failures} times, {end}"


def _notes_of_plugins(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Gives what plugins with `closing_notes` have to say of the run."""
    for member in trainer.bus.members.values():
        notes = getattr(member.plugin, "closing_notes", None)
        if callable(notes):
            yield from notes()


def _times(trainer: Trainer) -> Iterator[tuple[str, str]]:
    assert trainer.running is not None
    spent = trainer.running.loop.journal.seconds
    total = sum(spent.values())
    yield "phases", _shares([(phase.value, spent[phase]) for phase in Phase if phase in spent], total)
    if plugins := [(member.name, member.seconds) for member in trainer.bus.members.values()]:
        yield "plugins", _shares(sorted(plugins, key=lambda plugin: -plugin[1]), total)


def _shares(spent: Sequence[tuple[str, float]], total: float) -> str:
    """Gives names with seconds and share of `total`; those that hardly count are put together at the end."""
    listed = [entry for entry in spent if entry[1] >= LEAST_SHARE * total] or spent[:1]
    rest = sum(seconds for _, seconds in spent) - sum(seconds for _, seconds in listed)
    words = [f"{name} {in_seconds(seconds)} ({share(seconds, total)})" for name, seconds in listed]
    if len(listed) < len(spent):
        words.append(f"{len(spent) - len(listed)} more {in_seconds(rest)}")
    return ", ".join(words)


def _named(path: Any) -> str:
    return "from " + path_text(path) if path is not None else "from a checkpoint"
