"""Where the trials of a search are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer_core import SettingsError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

BUSY_SECONDS: Final = 60
"""How long SQLite waits for another reader or writer of the file."""


@contextmanager
def opened(place: Any, folder: Path) -> Iterator[BaseStorage]:
    """Gives Optuna's storage for an object, a URL, or a file relative to `folder`.

    Raises:
        SettingsError: there is no such database, or no writing to it.
    """
    if not isinstance(place, str | Path):
        yield place
        return
    storage = _connected(str(place)) if "://" in str(place) else _of_file(folder.joinpath(place).resolve())
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def shown(place: Any) -> str:
    """Gives a storage for a message, without its password."""
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", str(place))


def _of_file(path: Path) -> Any:
    from sqlalchemy import URL

    path.parent.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return _connected(url, connect_args={"timeout": BUSY_SECONDS})


def _connected(url: str, **options: Any) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        return RDBStorage(url, engine_kwargs=options)
    except (ArgumentError, SQLAlchemyError, ImportError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        problem = f"tuning.storage: cannot be opened, got {shown(url)!r} ({type(error).__name__}: {reason})."
        remedy = "Name a file that can be written to, or a URL like sqlite:////data/trials.db."
        raise SettingsError([f"{problem} {remedy}"]) from error
