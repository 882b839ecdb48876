"""Answers that take files in: what to upload and how, large files, and commits."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Final, cast
from uuid import uuid4

from trainer_core_hub_push.loopback.answers import REPO, Answer, Call, RefusedError, route
from trainer_core_hub_push.loopback.store import Account, Blob, MissingError, Store, is_large

_LFS: Final = r"(?:/(?P<types>datasets|spaces))?/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    """Says what is wrong with a card's header."""
    import yaml

    content = call.json["content"]
    text = content[4:].partition("\n---")[0] if content.startswith("---\n") else ""
    try:
        head = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        return _wrong(f"YAML is not valid: {error}")
    if not isinstance(head, dict):
        return _wrong("The header must be a mapping")
    for name, kinds in {"tags": list, "license": (str, list), "library_name": str, "model-index": list}.items():
        if name in head and not isinstance(head[name], cast("type", kinds)):
            return _wrong(f'"{name}" is of the wrong type')
    warnings = [] if head else [{"message": "empty or missing yaml metadata in repo card"}]
    return Answer(body={"errors": [], "warnings": warnings})


def _wrong(text: str) -> Answer:
    return Answer(400, {"error": text, "errors": [{"message": text}], "warnings": []}, {"X-Error-Message": text})


@route("POST", f"{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(call: Call) -> Answer:
    """Says how each file is to be uploaded, and what is there under its path now."""
    repository, values = call.repository(write=True), call.json
    there = repository.at(call.words["revision"]).blobs
    ignored = values.get("gitIgnore")
    if ignored is None:
        ignored = there[".gitignore"].content.decode() if ".gitignore" in there else ""
    return Answer(body={"files": [_upload_of(file, there, ignored) for file in values["files"]]})


def _upload_of(file: Mapping[str, Any], there: Mapping[str, Blob], ignored: str) -> dict[str, Any]:
    path = file["path"]
    large = is_large(path, file["size"], b64decode(file["sample"]))
    blob = there.get(path)
    oid = None if blob is None else blob.sha256 if large else blob.oid
    mode = "lfs" if large else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": _is_ignored(path, ignored), "oid": oid}


def _is_ignored(path: str, ignored: str) -> bool:
    patterns = [line.strip().rstrip("/") for line in ignored.splitlines() if line.strip() and line[0] != "#"]
    return any(fnmatch(part, pattern) for pattern in patterns for part in (path, *PurePosixPath(path).parts))


@route("POST", _LFS)
def large_files(call: Call) -> Answer:
    """Says where each large file goes that is not there yet."""
    call.repository(write=True)
    return Answer(body={"transfer": "basic", "objects": [_object(call, wanted) for wanted in call.json["objects"]]})


def _object(call: Call, wanted: Mapping[str, Any]) -> dict[str, Any]:
    oid, size = wanted["oid"], wanted["size"]
    if oid in call.store.objects:
        return {"oid": oid, "size": size}
    ticket = uuid4().hex
    call.store.uploads[ticket] = oid
    upload = {"href": f"{call.base}/loopback/upload/{ticket}"}
    verify = {"href": f"{call.base}/loopback/verify/{ticket}"}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


@route("PUT", "/loopback/upload/(?P<ticket>[0-9a-f]+)")
def upload(call: Call) -> Answer:
    """Takes a large file in, if it is the one that was announced."""
    oid = call.store.uploads.get(call.words["ticket"])
    if oid is None or sha256(call.body).hexdigest() != oid:
        raise RefusedError(403 if oid is None else 400, "No such upload, or another content")
    call.store.objects[oid] = call.body
    return Answer(headers={"ETag": f'"{oid}"'})


@route("POST", "/loopback/verify/(?P<ticket>[0-9a-f]+)")
def verify(call: Call) -> Answer:
    """Tells whether a large file arrived."""
    oid, size = call.json["oid"], call.json["size"]
    if len(call.store.objects.get(oid, b"")) != size:
        raise RefusedError(404, "The object is missing or of another size", "EntryNotFound")
    return Answer(body={})


@route("POST", f"{REPO}/commit/(?P<revision>[^/]+)")
def commit(call: Call) -> Answer:
    """Puts a commit on a branch, or opens a pull request with it."""
    repository, revision = call.repository(write=True), call.words["revision"]
    branch = revision.removeprefix("refs/heads/")
    if branch not in repository.branches:
        raise MissingError("RevisionNotFound", f"Invalid rev id: {revision}")
    head, *lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    about, tip = head["value"], repository.branches[branch]
    is_pull = call.parameters.get("create_pr") == ["1"]
    start = about.get("parentCommit") or tip
    if not is_pull and not tip.startswith(start):
        raise RefusedError(412, f"A commit has happened since: the head of {branch} is {tip}, and not {start}")
    blobs = dict(repository.at(start).blobs)
    for line in lines:
        _apply(call.store, blobs, line["key"], line["value"])
    pulls = sum(name.startswith("refs/pr/") for name in repository.branches)
    if is_pull:
        branch = f"refs/pr/{pulls + 1}"
        repository.branches[branch] = repository.at(start).id
    author = cast("Account", call.account).user
    made = repository.add(branch, blobs, about["summary"], about.get("description", ""), author)
    body: dict[str, object] = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{call.url(repository)}/commit/{made.id}",
    }
    if is_pull:
        body["pullRequestUrl"] = f"{call.url(repository)}/discussions/{pulls + 1}"
    return Answer(body=body)


def _apply(store: Store, blobs: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
    path = value["path"]
    if not path or path.startswith("/") or {"..", "", ".git"} & set(path.rstrip("/").split("/")):
        raise RefusedError(400, f"Invalid path: {path!r}")
    if key == "file":
        content = value["content"]
        raw = b64decode(content) if value.get("encoding") == "base64" else content.encode()
        blobs[path] = Blob(raw, large=False)
    elif key == "lfsFile":
        if value["oid"] not in store.objects:
            raise RefusedError(400, f"The large file {path!r} was not uploaded")
        blobs[path] = Blob(store.objects[value["oid"]], large=True)
    elif key in ("deletedFile", "deletedFolder"):
        for doomed in list(_doomed(blobs, path, is_folder=key == "deletedFolder")):
            del blobs[doomed]
    else:
        raise RefusedError(400, f"Unknown operation {key!r}")


def _doomed(blobs: Mapping[str, Blob], path: str, *, is_folder: bool) -> Iterator[str]:
    below = f"{path.rstrip('/')}/"
    found = [name for name in blobs if (name.startswith(below) if is_folder else name == path)]
    if not found:
        raise MissingError("EntryNotFound", "A file with this name doesn't exist")
    yield from found
