"""Answers that give files out: the tree, single paths, and contents in full or in part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Any, Final

from trainer_core_hub_push.loopback.answers import REPO, Answer, Call, RefusedError, route
from trainer_core_hub_push.loopback.store import Blob, MissingError

_RESOLVE: Final = (
    r"(?:/(?P<types>datasets|spaces))?/(?P<repo>[^/]+/[^/]+)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)"
)
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")


def _file(path: str, blob: Blob) -> dict[str, Any]:
    size = len(blob.content)
    entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": blob.oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    return entry


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": sha1(path.encode()).hexdigest()}


def _folders(paths: Iterable[str]) -> set[str]:
    """Gives all folders that `paths` lie in."""
    return {path[:cut] for path in paths for cut in range(len(path)) if path[cut] == "/"}


@route("GET", rf"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(call: Call) -> Answer:
    """Lists files and folders; below folders too when that is asked for."""
    commit, folder = call.repository().at(call.words["revision"]), call.words.get("path", "").strip("/")
    below = f"{folder}/" if folder else ""
    files = {path: blob for path, blob in commit.blobs.items() if path.startswith(below)}
    if folder and not files:
        raise MissingError("EntryNotFound", f"{folder} does not exist on {call.words['revision']!r}", commit.id)
    entries = [_folder(path) for path in _folders(files) if path.startswith(below)]
    entries += [_file(path, blob) for path, blob in files.items()]
    if call.parameters.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(below)]
    return Answer(body=sorted(entries, key=lambda entry: str(entry["path"])))


@route("POST", f"{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Call) -> Answer:
    """Gives the entries of some paths; those that are not there are left out."""
    blobs: Mapping[str, Blob] = call.repository().at(call.words["revision"]).blobs
    folders = _folders(blobs)
    wanted = [path.rstrip("/") for path in call.form.get("paths", [])]
    files = [_file(path, blobs[path]) for path in wanted if path in blobs]
    return Answer(body=files + [_folder(path) for path in wanted if path in folders])


@route("GET", _RESOLVE)
def content(call: Call) -> Answer:
    """Gives a file, or the range of it that is asked for; large files come from here as well, without a detour."""
    commit, path = call.repository().at(call.words["revision"]), call.words["path"]
    blob = commit.blobs.get(path)
    if blob is None:
        raise MissingError("EntryNotFound", "Entry not found", commit.id)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream"
    if blob.large:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    wanted = _RANGE.fullmatch(call.headers.get("range", ""))
    if wanted is None:
        return Answer(body=blob.content, headers=headers)
    return _part(blob.content, int(wanted[1]), int(wanted[2] or len(blob.content) - 1), headers)


def _part(whole: bytes, first: int, last: int, headers: dict[str, str]) -> Answer:
    if first >= len(whole):
        raise RefusedError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(whole)}"})
    last = min(last, len(whole) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
    return Answer(206, whole[first : last + 1], headers)
