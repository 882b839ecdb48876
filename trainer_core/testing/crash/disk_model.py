"""A disk that keeps what was flushed, and of all else what one likes.

The model replays recorded calls. Each write, cut and change of a name is an operation; a flush of a file makes those on
its content durable, a flush of a folder those on its names. `Disk.after` gives what a power cut leaves: the durable
operations and, of the others, those that a `Survival` picks. A name that survives points to its file whatever else was
lost, which is harsher than a journaling file system, and so is keeping a later change without an earlier one.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer_core.testing.crash.calls import CUTS, FLUSHES, LINKS, MAKES, RENAMES, UNLINKS, WRITES, Call

_GONE: Final = " (deleted)"
Names = dict[str, "Node"]


class ModelError(Exception):
    """A call that the model does not know how to replay."""


@dataclass(eq=False)
class Node:
    """A file or a folder, as the processes see it while the power is on."""

    is_folder: bool
    names: Names = field(default_factory=dict)
    size: int = 0


@dataclass(eq=False)
class Operation:
    """One change of a content or of names.

    Attributes:
        at: the call that made it.
        node: whose content, or in whose names.
        data: bytes that are written at `offset`; None for another kind.
        length: to which the content is cut; None for another kind.
        names: what becomes of names: (folder, name, node or None for gone), all of them or none.
        durable_at: the call that flushed it; None where none did.
    """

    at: int
    node: Node
    data: bytes | None = None
    offset: int = 0
    length: int | None = None
    names: tuple[tuple[Node, str, Node | None], ...] = ()
    durable_at: int | None = None

    @property
    def folders(self) -> set[Node]:
        """Folders whose names it changes."""
        return {folder for folder, _, _ in self.names}


Survival = Callable[[Operation], float]
"""What part of an operation that was not flushed survives, from 0 to 1; a part of a name is all of it."""


def nothing(operation: Operation) -> float:
    """Only what was flushed survives."""
    return 0.0


def names_alone(operation: Operation) -> float:
    """All names are there, and of contents only what was flushed: the well-known empty files."""
    return float(bool(operation.names))


def contents_alone(operation: Operation) -> float:
    """All contents are there, and of names only those that were flushed."""
    return float(not operation.names)


def anything(seed: int) -> Survival:
    """A subset by chance, some writes torn."""
    chance = random.Random(seed)
    return lambda operation: chance.choice((0.0, 0.0, chance.random(), 1.0, 1.0))


class Disk:
    """Replays calls; the folder that they concern is new at their beginning.

    Raises:
        ModelError: one of them cannot be replayed.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.above = Node(is_folder=True)
        self.operations: list[Operation] = []
        for at, call in enumerate(calls):
            if call.name != "announce":
                self._replay(at, call)

    def after(self, at: int, survival: Survival) -> Tree:
        """Gives what is left when the power is cut just before call `at`."""
        names: dict[Node, Names] = {}
        contents: dict[Node, bytearray] = {}
        for operation in self.operations:
            if operation.at >= at:
                break
            is_durable = operation.durable_at is not None and operation.durable_at < at
            part = 1.0 if is_durable else survival(operation)
            if part > 0:
                _apply(operation, part, names, contents)
        root = names.get(self.above, {}).get(".")
        return Tree({} if root is None else _flat(root, names, contents, ""), exists=root is not None)

    def _replay(self, at: int, call: Call) -> None:
        if any(path.endswith(_GONE) for path in call.paths):
            return
        if call.name in WRITES:
            self._write(at, call)
        elif call.name in FLUSHES:
            self._flush(at, self._find(call.paths[0]))
        elif call.name in MAKES:
            self._make(at, call)
        elif call.name in ("mkdir", "mkdirat"):
            if self._find(call.paths[0]) is None:
                self._name(at, call.paths[0], Node(is_folder=True))
        elif call.name in CUTS and call.name != "fallocate":
            self._cut(at, self._file(call.paths[0]), call.size)
        else:
            self._rename(at, call)

    def _rename(self, at: int, call: Call) -> None:
        if call.name not in (*RENAMES, *LINKS, *UNLINKS, "rmdir"):
            raise ModelError(f"{call}: is not replayed by the model of a disk.")
        node = self._find(call.paths[0])
        if node is None or (call.name in LINKS and self._find(call.paths[1]) is not None):
            return  # the call failed
        changes: list[tuple[Node, str, Node | None]] = (
            [] if call.name in LINKS else [(*self._place(call.paths[0]), None)]
        )
        changes += [(*self._place(call.paths[1]), node)] if len(call.paths) == 2 else []
        self._change(Operation(at, node, names=tuple(changes)))

    def _make(self, at: int, call: Call) -> None:
        found = self._find(call.paths[0])
        if found is None:
            self._name(at, call.paths[0], Node(is_folder=False))
        elif call.name == "creat" or call.flags & os.O_TRUNC:
            self._cut(at, found, 0)

    def _name(self, at: int, path: str, node: Node) -> None:
        self._change(Operation(at, node, names=((*self._place(path), node),)))

    def _change(self, operation: Operation) -> None:
        for folder, name, node in operation.names:
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        self.operations.append(operation)

    def _write(self, at: int, call: Call) -> None:
        if call.data is None:
            raise ModelError(f"{call}: its bytes were not recorded.")
        node = self._file(call.paths[0])
        offset = node.size if call.offset is None else call.offset
        node.size = max(node.size, offset + len(call.data))
        self.operations.append(Operation(at, node, data=call.data, offset=offset))

    def _cut(self, at: int, node: Node, length: int) -> None:
        node.size = length
        self.operations.append(Operation(at, node, length=length))

    def _flush(self, at: int, node: Node | None) -> None:
        for operation in self.operations:
            if operation.durable_at is None and node in (operation.folders or {operation.node}):
                operation.durable_at = at

    def _place(self, path: str) -> tuple[Node, str]:
        """Gives the folder in which a path ends, and its last name."""
        if path == ".":
            return self.above, "."
        parent = self._find(os.path.dirname(path) or ".")
        if parent is None:
            raise ModelError(f"{path}: lies in no folder that the model knows.")
        return parent, os.path.basename(path)

    def _find(self, path: str) -> Node | None:
        if path == "..":
            return self.above
        node = self.above.names.get(".")
        for part in [] if path == "." else path.split("/"):
            node = None if node is None else node.names.get(part)
        return node

    def _file(self, path: str) -> Node:
        node = self._find(path)
        if node is None:
            raise ModelError(f"{path}: is no file that the model knows.")
        return node


def _apply(operation: Operation, part: float, names: dict[Node, Names], contents: dict[Node, bytearray]) -> None:
    for folder, name, node in operation.names:
        held = names.setdefault(folder, {})
        if node is None:
            held.pop(name, None)
        else:
            held[name] = node
    content = contents.setdefault(operation.node, bytearray())
    if operation.data is not None:
        data = operation.data[: round(len(operation.data) * part)]
        content.extend(bytes(max(0, operation.offset - len(content))))
        content[operation.offset : operation.offset + len(data)] = data
    elif operation.length is not None:
        content.extend(bytes(max(0, operation.length - len(content))))
        del content[operation.length :]


def _flat(node: Node, names: dict[Node, Names], contents: dict[Node, bytearray], path: str) -> dict[str, bytes | None]:
    flat: dict[str, bytes | None] = {}
    for name, inner in sorted(names.get(node, {}).items()):
        if inner.is_folder:
            flat[f"{path}{name}"] = None
            flat |= _flat(inner, names, contents, f"{path}{name}/")
        else:
            flat[f"{path}{name}"] = bytes(contents.get(inner, b""))
    return flat


@dataclass(frozen=True)
class Tree:
    """What is left of a folder.

    Attributes:
        entries: by path: the content of a file, None for a folder.
        exists: whether the folder itself is there.
    """

    entries: dict[str, bytes | None]
    exists: bool = True

    @property
    def digest(self) -> str:
        """The same for the same tree."""
        return hashlib.sha256(repr((self.exists, sorted(self.entries.items()))).encode()).hexdigest()

    def make(self, folder: Path) -> None:
        """Puts it on a real disk."""
        if self.exists:
            folder.mkdir(parents=True)
        for path, content in self.entries.items():
            if content is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(content)
