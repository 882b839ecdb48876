"""Digests: SHA-256 over exact bits.

The bits of a tensor count, not its values: 0.0 is not -0.0, a NaN equals itself. Type and shape count with them; the
device, the strides and who shares memory with whom do not. SHA-256, because processors have instructions for it: it is
the fastest of the standard library's that tells any two contents apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch  # imported where it is used: settings are made without it

SHORT: Final = 8
"""Hexadecimal digits that name one tensor among a model's; that nothing differs is told by the whole digest."""


def digest_of_tensor(tensor: torch.Tensor) -> bytes:
    """Gives the digest of a tensor: 32 bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}".encode())
    for part in _parts(tensor.detach()):
        found.update(_bytes(part))
    return found.digest()


def digest_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, str]:
    """Gives one digest of named tensors, and short ones of each, one behind the other."""
    whole, short = hashlib.sha256(), []
    for name, tensor in tensors:
        digest = digest_of_tensor(tensor)
        whole.update(f"{len(name)} {name}".encode() + digest)
        short.append(digest.hex()[:SHORT])
    return whole.hexdigest()[:32], "".join(short)


def tensors_of(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Gives the parameters and buffers of a model by name; one that has several names is there once."""
    return [*model.named_parameters(), *model.named_buffers()]


def digest_of_value(value: Any) -> str:
    """Gives the digest of whatever a collator made: of its tensors, numbers and texts, and how they are nested.

    Of an object of another kind its type alone counts.
    """
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:16]


def exact(value: Any) -> float | str | None:
    """Gives a number as JSON holds it to the last bit; one that is not finite as text."""
    if value is None:
        return None
    number = float(value)
    return number if number - number == 0.0 else repr(number)


def _feed(found: Any, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        found.update(b"t" + digest_of_tensor(value))
    elif isinstance(value, Mapping):
        found.update(b"m%d" % len(value))
        for key, item in value.items():
            _feed(found, key)
            _feed(found, item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found.update(b"s%d" % len(value))
        for item in value:
            _feed(found, item)
    elif value is None or isinstance(value, str | bytes | int | float):
        text = repr(value).encode()
        found.update(b"v%d " % len(text) + text)
    else:
        found.update(f"o{type(value).__qualname__} ".encode())


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Gives the dense tensors that a tensor is made of."""
    import torch

    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.int_repr()] if tensor.is_quantized else [tensor]


def _bytes(tensor: torch.Tensor) -> Any:
    """Gives the bytes of a dense tensor, without a copy where it lies on the CPU in one piece."""
    import torch

    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""
