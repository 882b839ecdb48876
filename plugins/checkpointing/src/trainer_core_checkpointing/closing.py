"""The mark of a finished run: `.finished.json` in `output_dir`, written whole when a run has ended in order.

It says which checkpoint is the last of the run and how the run ended after it, and holds a SHA-256 of itself. A mark
that is damaged, or that is of another run or step than the checkpoint which is resumed, is passed over: the run then
does again what came after its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import CheckpointError, closing_state, replace_file
from trainer_core_checkpointing import files
from trainer_core_checkpointing.history import plain_row
from trainer_core_checkpointing.manifest import Manifest
from trainer_core_checkpointing.schema import check_counters
from trainer_core_checkpointing.tree import decode, encode
from trainer_core_checkpointing.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.checkpointing")

NAME: Final = ".finished.json"


def write_mark(trainer: Trainer, run: str, generation: int, num_rows: int) -> None:
    """Marks the run of `trainer` as finished, its last checkpoint being that of the last update.

    A run that has ended does not fail because the mark cannot be written; that is said.
    """
    closing = closing_state(trainer, num_rows)
    closing = {**closing, "rows": [plain_row(row) for row in closing["rows"]], "metrics": plain_row(closing["metrics"])}
    counters = encode(closing["counters"], {})
    body = {"run": run, "generation": generation, **closing, "counters": counters}
    file = Path(trainer.args.output_dir) / NAME
    try:
        replace_file(file, _text(body))
    except OSError as error:
        logger.warning("%s: cannot be written, %s. Resuming does the end of the run again.", file, error)


def read_mark(output_dir: Path, manifest: Manifest) -> Mapping[str, Any] | None:
    """Gives how the run ended whose last checkpoint `manifest` is of; None where it did not, or the mark is damaged."""
    file = output_dir / NAME
    if not file.is_file():
        return None
    try:
        text = read_bytes(file)
        body = parse_json(text, file)
        if _text({name: value for name, value in body.items() if name != "sha256"}) != text:
            raise CheckpointError(f"{file}: is damaged, its checksum does not fit")
        finished = {name: decode(value, {}) for name, value in body.items()}
        check_counters(finished["counters"], file)
        step = finished["counters"]["global_step"]
    except (CheckpointError, OSError, AttributeError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s: is passed over, the end of the run is done again. %s", file.name, error)
        return None
    is_of_it = (finished["run"], finished["generation"], step) == (manifest.run, manifest.generation, manifest.step)
    return finished if is_of_it else None


def remove_mark(output_dir: Path) -> None:
    """Takes the mark off: a run goes on, or begins."""
    file = output_dir / NAME
    if os.path.lexists(file) and not file.is_dir():
        files.calls.unlink(file)
        files.flush_folder(output_dir)


def _text(body: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}) + "\n").encode()
