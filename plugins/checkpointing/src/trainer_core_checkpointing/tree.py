"""A nested state of tensors and plain values as JSON and safetensors, and back, exactly.

JSON holds the shape of the tree and everything that is no tensor; what JSON lacks is an object with one marked key:

    {"__tensor__": "optimizer.state.0.exp_avg"}    a tensor, by its name in the safetensors file
    {"__tuple__": [...]}                           a tuple
    {"__dict__": [[key, value], ...]}              a dict whose keys are not plain strings
    {"__number__": "nan"}, {"__number__": "0x…"}   a float that JSON lacks, an int of more than 64 bits
    {"__bytes__": "…"}                             bytes, in base64

Objects of other types are refused by name, so that nothing needs to be unpickled.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from trainer_core import CheckpointError, InvalidCheckpointError
from trainer_core_checkpointing.tensors import read_shapes, read_tensors
from trainer_core_checkpointing.untrusted import MAX_JSON_BYTES, MAX_JSON_VALUES, Seal, count_values, read_json

MAX_DEPTH: Final = 100
"""A deeper tree is refused, when written and when read."""
_TOLD: Final = 200
"""Signs of a place that errors tell."""
_MAX_NUMBER: Final = 2**16
"""Signs of a number that JSON lacks."""
_TENSOR, _TUPLE, _DICT, _NUMBER, _BYTES = "__tensor__", "__tuple__", "__dict__", "__number__", "__bytes__"
_MARK: Final = "__"
_WIDE: Final = 2**63


def pack_tree(tree: object, tensors: dict[str, torch.Tensor], name: str) -> bytes:
    """Gives the JSON of `tree`, and puts its tensors into `tensors`.

    Raises:
        CheckpointError: it holds what cannot be saved, or more than is read again.
    """
    text = json.dumps(encode(tree, tensors, where=name), allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_JSON_BYTES or count_values(text) > MAX_JSON_VALUES:
        what = f"would take {len(text)} bytes of JSON, over {MAX_JSON_BYTES}, or over {MAX_JSON_VALUES} values"
        raise CheckpointError(f"{name}: {what}. Keep what is large in tensors.")
    return text


def read_tree(folder: Path, name: str, seals: Mapping[str, Seal] | None = None, *, shapes_only: bool = False) -> Any:
    """Gives back what `pack_tree` was given, from the files that a save made of it.

    Args:
        folder: where it is.
        name: of its files, without suffix.
        seals: what each file must be, by name; what is given are then those bytes.
        shapes_only: give of tensors type and shape alone.

    Raises:
        InvalidCheckpointError: a file is missing, damaged, too large or no such tree.
    """
    texts, file = folder / f"{name}.json", folder / f"{name}.safetensors"
    value = read_json(texts, None if seals is None else seals.get(texts.name))
    has_tensors = file.is_file() if seals is None else file.name in seals
    tensors: dict[str, Any] = {}
    if has_tensors:
        read: Callable[[Path, Seal | None], dict[str, Any]] = read_shapes if shapes_only else read_tensors
        tensors = read(file, None if seals is None else seals[file.name])
    try:
        tree = decode(value, tensors, where=name)
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(texts, f"cannot be read, {error.file}: {error.what}") from error
    for left in tensors:
        raise InvalidCheckpointError(file, f"holds {left!r}, which {texts.name} does not name")
    return tree


def encode(value: object, tensors: dict[str, torch.Tensor], where: str = "", depth: int = 0) -> Any:
    """Gives the JSON value for `value` and puts its tensors into `tensors`.

    An instance of a subclass of a number, string, tuple or mapping becomes one of the type itself.

    Raises:
        CheckpointError: it holds something else, or is too deep.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where[:80]}…: is nested more than {MAX_DEPTH} deep. Flatten the state.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if -_WIDE <= value < _WIDE else {_NUMBER: hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_NUMBER: float.__repr__(value)}
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, torch.Tensor):
        return {_TENSOR: _keep(value, tensors, where)}
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, f"{where}.{place}", depth + 1) for place, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return _encode_mapping(value, tensors, where, depth)
    raise CheckpointError(
        f"{where}: cannot be saved without pickling, got {type(value).__name__}. "
        f"Keep numbers, strings, lists, tuples, dicts and tensors in the state."
    )


def decode(value: Any, tensors: dict[str, Any], where: str = "", depth: int = 0) -> Any:
    """Gives back what `encode` was given, and takes its tensors out of `tensors`.

    Raises:
        CheckpointError: `value` is no such tree, or its tensors are not there.
    """
    if depth > 2 * MAX_DEPTH + 2:
        raise _damaged(where, "is nested too deep")
    where = where[:_TOLD]  # names of a hostile file may be long, and would be copied for each value below them
    if isinstance(value, list):
        return [decode(item, tensors, f"{where}.{place}", depth + 1) for place, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key.startswith(_MARK):
            return _decode_marked(key, inner, tensors, where, depth)
    return {key: decode(item, tensors, f"{where}.{key[:_TOLD]}", depth + 1) for key, item in value.items()}


def _encode_mapping(value: Mapping[Any, Any], tensors: dict[str, torch.Tensor], where: str, depth: int) -> Any:
    is_plain = all(isinstance(key, str) and not key.startswith(_MARK) for key in value)
    if is_plain:
        return {str(key): encode(item, tensors, f"{where}.{key}", depth + 1) for key, item in value.items()}
    pairs: list[list[Any]] = []
    for key, item in value.items():
        name = f"{where}.{key}" if isinstance(key, str | int) else f"{where}.{len(pairs)}"
        pairs.append([encode(key, tensors, f"{name}.key", depth + 1), encode(item, tensors, name, depth + 1)])
    return {_DICT: pairs}


def _decode_marked(key: str, inner: Any, tensors: dict[str, Any], where: str, depth: int) -> Any:
    try:
        if key == _TENSOR:
            return tensors.pop(inner)
        if key == _TUPLE:
            return tuple(decode(inner, tensors, where, depth + 1))
        if key == _DICT:
            return _decode_pairs(inner, tensors, where, depth)
        if key == _NUMBER and len(inner) <= _MAX_NUMBER:
            return int(inner, 16) if "x" in inner else float(inner)
        if key == _BYTES:
            return base64.b64decode(inner, validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(where, f"is damaged, got {error!r}") from error
    raise _damaged(where, f"is of an unknown kind, got {key[:_TOLD]!r}")


def _damaged(where: str, what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(Path(where or "."), what)


def _decode_pairs(pairs: Any, tensors: dict[str, Any], where: str, depth: int) -> dict[Any, Any]:
    decoded = (decode(pair, tensors, where, depth + 1) for pair in pairs)
    found = {name: item for name, item in decoded}  # noqa: C416 # dict() would take strings of two letters
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _keep(tensor: torch.Tensor, tensors: dict[str, torch.Tensor], where: str) -> str:
    """Puts a tensor into `tensors` under its place in the tree and gives the name."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise CheckpointError(
            f"{where}: safetensors holds no such tensor, got {tensor.dtype}, {tensor.layout}. "
            f"Save it as a dense, real one."
        )
    name, number = where, 1
    while name in tensors:
        name, number = f"{where}#{number}", number + 1
    tensors[name] = tensor.detach()
    return name
