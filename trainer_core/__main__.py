"""`python -m trainer_core`: what is built in, what is installed, and why a run did what it did.

    python -m trainer_core machine               the table of phases and its diagram
    python -m trainer_core plugins               installed plugins with their settings and hooks
    python -m trainer_core schema                the JSON schema of a settings file
    python -m trainer_core explain RUN STEP      what happened after an update, and who asked for it

None of them imports torch, unless a plugin does. A plugin's distribution may offer further commands through the
entry-point group `trainer_core.commands`: a function that takes the command's parser, adds arguments to it, and gives
the function that does the work and gives the exit code. The first line of its docstring says what the command does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from trainer_core.errors import PluginError, TrainerCoreError
from trainer_core.settings.names import COMMAND_OF, distribution_of

GROUP: Final = "trainer_core.commands"


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks and gives the exit code: 0, 1 for what cannot be answered, 2 for misuse."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        given = parser(words[0] if words else "").parse_args(words)
    except PluginError as error:
        print(f"python -m trainer_core: {error}", file=sys.stderr)
        return 1
    try:
        code: int = given.command(given)
    except TrainerCoreError as error:
        print(f"{given.prog}: {error}", file=sys.stderr)
        return 1
    return code


def parser(wanted: str = "") -> argparse.ArgumentParser:
    """Gives the parser of the command line, `wanted` among the commands of plugins ready to use.

    Raises:
        PluginError: the plugin of the wanted command is broken, or not installed.
    """
    whole = argparse.ArgumentParser(prog="python -m trainer_core", description=(__doc__ or "").partition("\n")[0])
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command, told in COMMANDS.items():
        one = commands.add_parser(command.__name__, help=told, description=told)
        one.set_defaults(command=command, prog=one.prog)
        if command is plugins:
            one.add_argument("--block", metavar="NAME", action="append", default=[], help="block a plugin by name")
        if command is explain:
            one.add_argument("output_dir", type=Path, help="folder of the run, or its journal file")
            one.add_argument("step", type=_step, help="number of an update; 0 is before the first")
            one.add_argument("--rank", type=_step, default=0, help="whose journal to read (default: %(default)s)")
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        one = commands.add_parser(point.name, help=f"(of {point.dist.name})" if point.dist is not None else None)
        if point.name == wanted:
            _complete(one, point)
    if wanted in COMMAND_OF and wanted not in commands.choices:
        owner = COMMAND_OF[wanted]
        raise PluginError(
            f"{wanted}: belongs to the plugin {owner!r}. Install it: pip install {distribution_of(owner)}."
        )
    return whole


def _complete(command: argparse.ArgumentParser, point: EntryPoint) -> None:
    """Lets a plugin add the arguments of its command."""
    try:
        offered = point.load()
        command.set_defaults(command=offered(command), prog=command.prog)
    except Exception as error:
        raise PluginError(
            f"{point.name}: the command {point.value} cannot be loaded ({type(error).__name__}: {error}). "
            f"Repair or uninstall its distribution."
        ) from error
    command.description = (offered.__doc__ or "").partition("\n")[0]


def machine(given: argparse.Namespace) -> int:
    """Prints the table of phases and its diagram."""
    from trainer_core.phases import exits_diagram, exits_table

    print(f"{exits_table()}\n\n```mermaid\n{exits_diagram()}\n```")
    return 0


def plugins(given: argparse.Namespace) -> int:
    """Prints installed plugins; the exit code is 1 when one is broken."""
    from trainer_core.settings.discovery import Installed, inventory

    found: list[Installed] = inventory(given.block)
    for one in found:
        print("  ".join(part for part in (one.name, f"({one.distribution})", one.problem) if part not in ("", "()")))
        if one.plugin is not None:
            print(f"    settings  {_settings(one.plugin) or 'none'}")
            print(f"    hooks     {', '.join(_hooks(one.plugin)) or 'none'}")
    if not found:
        print("No plugin is installed.")
    return int(any(one.problem.startswith("broken") for one in found))


def schema(given: argparse.Namespace) -> int:
    """Prints the JSON schema of all settings, those of installed plugins included."""
    from trainer_core.settings.arguments import TrainingArguments

    print(json.dumps(TrainingArguments.json_schema(), indent=2, ensure_ascii=False))
    return 0


def explain(given: argparse.Namespace) -> int:
    """Says in words what happened after an update, from the journal."""
    from trainer_core import journal

    folder: Path = given.output_dir
    name = f"journal-rank{given.rank}.jsonl" if given.rank else "journal.jsonl"
    path = folder / name if folder.is_dir() else folder
    if not path.is_file():
        return _refuse(given, f"output_dir: has no journal, got {str(path)!r}. Name the folder that a run wrote into.")
    entries = journal.last_run(path)
    if not entries:
        return _refuse(given, f"{path}: has no entry. Name the journal of a run that began.")
    last = max(entry.step for entry in entries)
    if given.step > last:
        return _refuse(given, f"step: the run came to update {last}, got {given.step}. Ask for one of 0 to {last}.")
    print(journal.explain(entries, given.step))
    return 0


COMMANDS = {
    machine: "print the table of phases and its diagram",
    plugins: "list installed plugins with their settings and hooks",
    schema: "print the JSON schema of a settings file",
    explain: "say what happened after an update of a run, and who asked for it",
}


def _refuse(given: argparse.Namespace, problem: str) -> int:
    print(f"{given.prog}: {problem}", file=sys.stderr)
    return 1


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _settings(plugin: type) -> str:
    """Gives the fields of a plugin's section with their defaults, and the flat names that they have."""
    section = plugin.settings_type  # type: ignore[attr-defined] # checked when it was loaded
    flat = {field: name for name, field in section.flat.items()}
    told = []
    for name, entry in section.model_fields.items():
        default = "" if entry.is_required() else f"={entry.get_default(call_default_factory=True)!r}"
        told.append(f"{name}{default}" + (f" ({flat[name]})" if name in flat else ""))
    return ", ".join(told)


def _hooks(plugin: type) -> list[str]:
    from trainer_core.hookspecs import HOOKS

    return [name for name in HOOKS if callable(getattr(plugin, name, None))]


if __name__ == "__main__":
    sys.exit(main())
