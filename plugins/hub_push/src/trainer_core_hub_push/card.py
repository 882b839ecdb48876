"""The model card: README.md of a repository, made of what a run knows about itself.

A card of ours bears a marker, and is written anew whenever a card is asked for; what the user said of the model in
options stands in the marker, and tags stay. A card without it was written by somebody else, and is never touched.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import replace_file
from trainer_core_hub_push import facts
from trainer_core_hub_push.results import Results, number, results_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.hub_push")

NAME: Final = "README.md"
_NOTE: Final = "written by trainer_core, and anew with each card; remove this line to keep what you change in it"
_MARKER: Final = re.compile(r"^<!-- written by trainer_core\b.*?(\{.*\})? -->$", re.MULTILINE)
_TAG: Final = "trainer_core"


@dataclass(frozen=True)
class CardOptions:
    """What the user says about a model, in the original's words; each may be one text or several.

    Attributes:
        language: codes of the languages.
        license: identifier of the license.
        tags: further tags.
        model_name: title; None for that of the repository.
        finetuned_from: repository of the model that training began with; None for what the model says.
        tasks: such as "text-classification"; None for what the model's class says.
        dataset_tags: the datasets' ids on the Hub.
        dataset: the datasets' names.
        dataset_args: the datasets' configurations.
    """

    language: Sequence[str] = ()
    license: Sequence[str] = ()
    tags: Sequence[str] = ()
    model_name: Sequence[str] = ()
    finetuned_from: Sequence[str] = ()
    tasks: Sequence[str] = ()
    dataset_tags: Sequence[str] = ()
    dataset: Sequence[str] = ()
    dataset_args: Sequence[str] = ()


def card_options(options: Mapping[str, Any]) -> CardOptions:
    """Gives the options of a card.

    Raises:
        TypeError: one is unknown or no text.
    """
    known = [field.name for field in fields(CardOptions)]
    given: dict[str, tuple[str, ...]] = {}
    for name, value in options.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"It takes {', '.join(known)}."
            raise TypeError(f"create_model_card: {name} is no option. {hint}")
        items = () if value is None else (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise TypeError(f"create_model_card: {name} must be text or a list of texts, got {value!r}. Quote it.")
        given[name] = tuple(items)
    return CardOptions(**given)


def write_card(trainer: Trainer, folder: Path, options: Mapping[str, Any] | None = None) -> Path:
    """Writes the card into `folder`, unless somebody else wrote one there; on the main rank.

    Args:
        trainer: whose run and model it tells of.
        folder: where README.md goes.
        options: fields of `CardOptions` with their values.

    Returns:
        The card's path.

    Raises:
        TypeError: an option is unknown or of the wrong type.
    """
    path, said = folder / NAME, options or {}
    card_options(said)
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    marker = _MARKER.search(old)
    if old.strip() and marker is None:
        logger.info("%s: was not written by trainer_core and is left as it is. Remove it to have one written.", path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, card_text(trainer, _with_earlier(said, old, marker)).encode())
    return path


def _with_earlier(said: Mapping[str, Any], old: str, marker: re.Match[str] | None) -> CardOptions:
    """Gives the options with those that were said for the card before, and the tags that it has."""
    earlier = json.loads(marker[1]) if marker is not None and marker[1] else {}
    known = {field.name for field in fields(CardOptions)}
    options = card_options({name: value for name, value in earlier.items() if name in known} | dict(said))
    tags = [tag for tag in _tags_of(old) if tag != _TAG]
    return replace(options, tags=tuple(dict.fromkeys([*options.tags, *tags])))


def _tags_of(card: str) -> list[str]:
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not card.strip():
        return []
    try:
        tags = getattr(ModelCard(card, ignore_metadata_errors=True).data, "tags", None)
    except (ValueError, YAMLError):  # somebody broke the header, which is made anew
        return []
    return [tag for tag in tags or () if isinstance(tag, str)]


def _marker(options: CardOptions) -> str:
    said = {name: value for name, value in asdict(options).items() if value and name != "tags"}
    text = json.dumps(said, ensure_ascii=False).replace(">", "\\u003e")
    return f"<!-- {_NOTE}{f' {text}' if said else ''} -->"


def card_text(trainer: Trainer, options: CardOptions) -> str:
    """Gives the whole card."""
    name = options.model_name[0] if options.model_name else facts.name_of(trainer)
    results = results_of(trainer)
    sections = {
        "Results": _results(results),
        "Training": _pairs(facts.of_the_run(trainer)),
        "Settings": _pairs(facts.changed_settings(trainer.args)) or "All settings have their defaults.\n",
        "Evaluations": _table(results),
        "Versions": _pairs(facts.versions(trainer)),
    }
    body = "".join(f"\n## {title}\n\n{text}" for title, text in sections.items() if text)
    head = _header(trainer, name, options, results).to_yaml()
    return f"---\n{head}\n---\n\n{_marker(options)}\n\n# {name}\n\n{_introduction(trainer, options)}\n{body}"


def _header(trainer: Trainer, name: str, options: CardOptions, results: Results) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base, data = _base(trainer, options), _datasets(trainer, options)
    tasks = options.tasks or facts.tasks_of(trainer.model)
    more: dict[str, Any] = {"base_model_relation": "adapter"} if base and facts.is_adapter(trainer.model) else {}
    scores = results.scores
    index = _model_index(tasks, data, scores)
    return ModelCardData(
        language=list(options.language) or None,
        license=options.license[0] if options.license else None,
        library_name=facts.library_of(trainer.model),
        tags=list(dict.fromkeys([_TAG, *options.tags])),
        base_model=base,
        datasets=[dataset.id for dataset in data if dataset.id] or None,
        metrics=list(scores) or None,
        pipeline_tag=tasks[0] if tasks else None,
        model_name=name if index else None,
        eval_results=index or None,
        **more,
    )


def _model_index(tasks: Sequence[str], data: Sequence[facts.Dataset], scores: Mapping[str, float]) -> list[EvalResult]:
    """Gives the results in the Hub's form, which names task and dataset; none where these are not known."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset.id or dataset.name,
            dataset_name=dataset.name,
            dataset_config=dataset.config,
            dataset_split=dataset.split,
            metric_type=metric,
            metric_value=value,
        )
        for task in tasks[:1]
        for dataset in data[:1]
        for metric, value in scores.items()
    ]


def _base(trainer: Trainer, options: CardOptions) -> str | None:
    return options.finetuned_from[0] if options.finetuned_from else facts.base_of(trainer.model)


def _datasets(trainer: Trainer, options: CardOptions) -> list[facts.Dataset]:
    """Gives the datasets that the user names, else what the data says of itself."""
    names, ids, configs = options.dataset or options.dataset_tags, options.dataset_tags, options.dataset_args
    if not names:
        return facts.datasets_of(trainer)
    return [facts.Dataset(name, _at(ids, place), _at(configs, place)) for place, name in enumerate(names)]


def _at(items: Sequence[str], place: int) -> str | None:
    return items[place] if place < len(items) else None


def _introduction(trainer: Trainer, options: CardOptions) -> str:
    base, data = _base(trainer, options), _datasets(trainer, options)
    subject = f"The model [{base}](https://huggingface.co/{base})" if base else f"A {facts.kind_of(trainer.model)}"
    verb = "fine-tuned further" if base else "trained"
    on = f" on {', '.join(dataset.name for dataset in data)}" if data else ""
    return f"{subject}, {verb}{on} with trainer_core."


def _results(results: Results) -> str:
    if not results.final:
        return ""
    return f"Measured {results.where}:\n\n" + _pairs({name: number(value) for name, value in results.final.items()})


def _pairs(values: Mapping[str, object]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in values.items())


def _table(results: Results) -> str:
    """Gives the evaluations, one a line, with the training loss that was logged last before each."""
    if not results.rows:
        return ""
    head = list(results.columns)
    lines = [head, [":---:" for _ in head], *(results.cells(row) for row in results.rows)]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Gives a text that neither ends its cell nor its line: names of metrics are the user's."""
    return " ".join(text.split()).replace("|", r"\|")
