"""Resuming from a repository: which checkpoint a name means, and how it comes into a folder here.

    user/repo                     of the newest commit: last-checkpoint if it has that, else the checkpoint of the
                                  highest step, else the repository itself if it is one
    user/repo@revision            the same at a branch, a tag or a commit
    user/repo/folder[@revision]   the checkpoint in that folder

It is pulled into `output_dir/.pulled/<owner>--<name>/<commit>/`, as plain files, and what was pulled of the repository
before is removed. Only the main rank pulls; the others wait.
"""

from __future__ import annotations

import glob
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from trainer_core import CheckpointError
from trainer_core_hub_push.client import hub_api, in_words, is_repo_id, is_transient, retry_after, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from trainer_core import Trainer

logger = logging.getLogger("trainer_core.hub_push")

Result = TypeVar("Result")

PULLED: Final = ".pulled"
LAST: Final = "last-checkpoint"
_NUMBERED: Final = re.compile(r"checkpoint-(\d+)")
_MANIFEST: Final = "manifest.json"
_OF_THE_HUB: Final = ".gitattributes"
_WHERE: Final = "resume_from_checkpoint"
_TRIES: Final = 5
_LONGEST_WAIT_SECONDS: Final = 60.0
_FOLDERS_TOLD: Final = 5


@dataclass(frozen=True)
class Source:
    """What a name of a checkpoint on the Hub says; an empty folder means that it is to be found."""

    repo: str
    folder: str = ""
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repo}{f'/{self.folder}' if self.folder else ''}{f'@{self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class _Failure:
    """Why nothing was pulled; goes to all ranks."""

    text: str


def read_source(text: str) -> Source | None:
    """Gives what a text says of a checkpoint on the Hub; None for one that says nothing of the kind."""
    path, at, revision = text.partition("@")
    parts = path.split("/")
    if len(parts) < 2 or not is_repo_id("/".join(parts[:2])) or {"", ".", ".."} & set(parts) or (at and not revision):
        return None
    return Source("/".join(parts[:2]), "/".join(parts[2:]), revision)


def fetch_checkpoint(
    trainer: Trainer, source: str | Path, *, token: str | None = None, endpoint: str | None = None
) -> Path | None:
    """Pulls the checkpoint that `source` means and gives its folder; on all ranks together.

    Args:
        trainer: of the run that is resumed.
        source: as at the head of this module.
        token: None for that of HF_TOKEN or the login.
        endpoint: of the Hub; None for that of HF_ENDPOINT.

    Returns:
        The folder; None for a folder that is here, and for what names no repository.

    Raises:
        CheckpointError: there is none, or it could not be pulled.
    """
    answer: Path | _Failure | None = None
    if trainer.is_main_rank:
        answer = _fetched(Path(trainer.args.output_dir), str(source), token, endpoint)
    answer = trainer.ranks.from_main(answer)
    if isinstance(answer, _Failure):
        raise CheckpointError(answer.text)
    return answer


def _fetched(output_dir: Path, text: str, token: str | None, endpoint: str | None) -> Path | _Failure | None:
    source = read_source(text)
    if source is None or any(path.is_dir() for path in (Path(text), output_dir / text, Path(source.repo))):
        return None
    try:
        return _pull(hub_api(token, endpoint), source, output_dir)
    except CheckpointError as error:
        return _Failure(str(error))
    except Exception as error:
        return _Failure(_told(error, source, token))


def _pull(api: HfApi, source: Source, output_dir: Path) -> Path:
    began = time.monotonic()
    info = _patiently(lambda: api.repo_info(source.repo, revision=source.revision or None))
    commit = str(info.sha)
    sizes = _patiently(lambda: _sizes(api, source.repo, commit))
    folder = _chosen(source, sizes)
    below = f"{folder}/" if folder else ""
    wanted = {path: size for path, size in sizes.items() if path.startswith(below) and path != _OF_THE_HUB}
    home = (output_dir / PULLED / source.repo.replace("/", "--")).absolute()
    target = home / commit[:12]
    _refuse_links(home)
    _patiently(lambda: _download(api, source.repo, commit, below, target))
    for path, size in wanted.items():
        _check(target / path, size)
    _forget_others(home, target)
    logger.info(
        "%s: pulled %s of commit %s, %d files with %.1f MB in %.1f s, into %s.",
        source,
        folder or "the whole repository",
        commit[:12],
        len(wanted),
        sum(wanted.values()) / 1e6,
        time.monotonic() - began,
        target,
    )
    return target / folder


def _sizes(api: HfApi, repo: str, commit: str) -> dict[str, int]:
    """Gives path -> size of every file."""
    entries: Any = api.list_repo_tree(repo, recursive=True, revision=commit)
    return {entry.path: entry.size for entry in entries if hasattr(entry, "size")}


def _chosen(source: Source, sizes: Mapping[str, int]) -> str:
    """Gives the folder of the checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    folders = {path.rpartition("/")[0] for path in sizes}
    if source.folder:
        if any(f"{folder}/".startswith(f"{source.folder}/") for folder in folders):
            return source.folder
        raise CheckpointError(f"{_WHERE}: the repository has no such folder, got {str(source)!r}. {_has(folders)}")
    numbered = [folder for folder in folders if _NUMBERED.fullmatch(folder)]
    if LAST in folders:
        return LAST
    if numbered:
        return max(numbered, key=lambda name: int(name.rpartition("-")[2]))
    if _MANIFEST in sizes:
        return ""
    raise CheckpointError(
        f"{_WHERE}: the repository has no {LAST} and no checkpoint-<step>, got {str(source)!r}. Push with "
        f"hub_strategy='checkpoint' or 'all_checkpoints', or name a folder of it, 'user/repo/folder'. {_has(folders)}"
    )


def _has(folders: set[str]) -> str:
    top = sorted({folder.partition("/")[0] for folder in folders if folder})
    more = f" and {len(top) - _FOLDERS_TOLD} more" if len(top) > _FOLDERS_TOLD else ""
    return f"It has {', '.join(top[:_FOLDERS_TOLD])}{more}." if top else "It has no folders."


def _download(api: HfApi, repo: str, commit: str, below: str, target: Path) -> None:
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):
        """Shows nothing: the console is the run's."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call] # it has no types

    api.snapshot_download(
        repo,
        revision=commit,
        local_dir=target,
        cache_dir=target / ".cache",
        allow_patterns=f"{glob.escape(below)}*",
        ignore_patterns=_OF_THE_HUB,
        tqdm_class=Quiet,
    )


def _check(file: Path, size: int) -> None:
    """Makes sure of a file; what is in it is checked by whoever reads the checkpoint."""
    there = file.stat().st_size if file.is_file() and not file.is_symlink() else None
    if there != size:
        what = "did not arrive" if there is None else f"arrived with {there} bytes instead of {size}"
        raise CheckpointError(f"{file}: {what}. Remove {file.parent} and try again.")


def _refuse_links(home: Path) -> None:
    """Makes sure that nothing is written elsewhere.

    Raises:
        CheckpointError: a folder that is pulled into, or something in it, is a link.
    """
    for path in chain((home.parent, home), home.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link, and is not written through. Remove it.")


def _forget_others(home: Path, target: Path) -> None:
    for old in home.iterdir():
        if old != target:
            shutil.rmtree(old)


def _patiently(action: Callable[[], Result]) -> Result:
    """Gives the result of `action`, which is tried again when the Hub was not reached, busy or out of order."""
    for number in range(1, _TRIES):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            seconds = min(retry_after(error) or 2.0 ** (number - 1), _LONGEST_WAIT_SECONDS)
            logger.warning("%s: %s; trying again in %g s.", _WHERE, in_words(error), seconds)
            time.sleep(seconds)
    return action()


def _told(error: Exception, source: Source, token: str | None) -> str:
    """Gives what went wrong and what to do about it, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    cause, got = in_words(error, token, get_token()), f"got {str(source)!r}"
    who = "the token may not read it" if token or get_token() else "it is private, and nobody is logged in"
    login = "Set hub_token or HF_TOKEN to one that may" if token or get_token() else "Set hub_token or HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"{_WHERE}: the repository is gated, {got} ({cause}). Ask for access on its page. {login}."
    if isinstance(error, RepositoryNotFoundError):
        return f"{_WHERE}: is no folder here, and no repository on the Hub or {who}, {got}. Correct it. {login}."
    if isinstance(error, RevisionNotFoundError):
        return f"{_WHERE}: the repository has no such revision, {got}. Name a branch, a tag or a commit of it."
    if status_of(error) in (401, 403):
        return f"{_WHERE}: the Hub refuses the token, {got} ({cause}). {login}."
    again = "Try again later" if is_transient(error) else "Repair that"
    return f"{_WHERE}: could not be pulled from the Hub, {got} ({cause}). {again}, or pass a folder."
