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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from trainer_core import CheckpointError

MAX_DEPTH: Final = 100
"""A deeper tree is refused, when written and when read."""
MAX_JSON_BYTES: Final = 256 * 2**20
"""A larger JSON file is refused before it is read."""

_TENSOR, _TUPLE, _DICT, _NUMBER, _BYTES = "__tensor__", "__tuple__", "__dict__", "__number__", "__bytes__"
_MARK: Final = "__"
_WIDE: Final = 2**63


def write_tree(tree: object, folder: Path, name: str) -> None:
    """Writes `tree` as `<name>.json` and, when it holds tensors, `<name>.safetensors`."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(encode(tree, tensors, where=name), allow_nan=False, separators=(",", ":"))
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if tensors:
        save_file(_apart(tensors), folder / f"{name}.safetensors")


def read_tree(folder: Path, name: str) -> Any:
    """Gives what `write_tree` wrote.

    Raises:
        CheckpointError: a file is missing, too large or no such tree.
    """
    value = read_json(folder / f"{name}.json")
    file = folder / f"{name}.safetensors"
    try:
        tensors = load_file(file) if file.is_file() else {}
        return decode(value, tensors, where=name)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises errors of its own and of Python's
        raise CheckpointError(f"{file}: cannot be read, {error}. Use another checkpoint.") from error


def read_json(file: Path) -> Any:
    """Gives the value in a JSON file.

    Raises:
        CheckpointError: it is missing, too large, too deep or no JSON.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file}: is too large, over {MAX_JSON_BYTES} bytes. Use another checkpoint.")
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read, {error}. Use another checkpoint.") from error


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


def decode(value: Any, tensors: Mapping[str, torch.Tensor], where: str = "", depth: int = 0) -> Any:
    """Gives back what `encode` was given.

    Raises:
        CheckpointError: `value` is no such tree, or its tensors are not there.
    """
    if depth > 2 * MAX_DEPTH + 2:
        raise CheckpointError(f"{where[:80]}…: is nested too deep. Use another checkpoint.")
    if isinstance(value, list):
        return [decode(item, tensors, f"{where}.{place}", depth + 1) for place, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key.startswith(_MARK):
            return _decode_marked(key, inner, tensors, where, depth)
    return {key: decode(item, tensors, f"{where}.{key}", depth + 1) for key, item in value.items()}


def _encode_mapping(value: Mapping[Any, Any], tensors: dict[str, torch.Tensor], where: str, depth: int) -> Any:
    is_plain = all(isinstance(key, str) and not key.startswith(_MARK) for key in value)
    if is_plain:
        return {str(key): encode(item, tensors, f"{where}.{key}", depth + 1) for key, item in value.items()}
    pairs: list[list[Any]] = []
    for key, item in value.items():
        name = f"{where}.{key}" if isinstance(key, str | int) else f"{where}.{len(pairs)}"
        pairs.append([encode(key, tensors, f"{name}.key", depth + 1), encode(item, tensors, name, depth + 1)])
    return {_DICT: pairs}


def _decode_marked(key: str, inner: Any, tensors: Mapping[str, torch.Tensor], where: str, depth: int) -> Any:
    try:
        if key == _TENSOR:
            return tensors[inner]
        if key == _TUPLE:
            return tuple(decode(inner, tensors, where, depth + 1))
        if key == _DICT:
            decoded = (decode(pair, tensors, where, depth + 1) for pair in inner)
            return {name: item for name, item in decoded}  # noqa: C416 # dict() would take strings of two letters
        if key == _NUMBER:
            return int(inner, 16) if "x" in inner else float(inner)
        if key == _BYTES:
            return base64.b64decode(inner, validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: is damaged, got {error!r}. Use another checkpoint.") from error
    raise CheckpointError(f"{where}: is of an unknown kind, got {key!r}. Read it with the version that wrote it.")


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


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors contiguous; a view and one that shares its memory with another as copies of their own."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_view = storage.nbytes() != tensor.nbytes
        own = tensor.contiguous()
        if own is tensor and tensor.numel() and (is_view or storage.data_ptr() in seen):
            own = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        result[name] = own
    return result
