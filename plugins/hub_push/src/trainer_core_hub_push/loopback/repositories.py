"""Answers about accounts and repositories as a whole: who, create, delete, info, branches, tags, history."""

from __future__ import annotations

from typing import cast

from trainer_core_hub_push.loopback.answers import REPO, TYPES, Answer, Call, RefusedError, route
from trainer_core_hub_push.loopback.store import Commit, Repository, RepoType


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    """Says whose the token is."""
    if call.account is None:
        raise RefusedError(401, "Invalid username or password.")
    user, token = call.account.user, {"displayName": "loopback", "role": call.account.role}
    orgs = [{"type": "org", "name": name, "fullname": name} for name in call.store.orgs.get(user, [])]
    auth = {"type": "access_token", "accessToken": token}
    return Answer(body={"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": auth})


def _wanted(call: Call) -> tuple[RepoType, str]:
    """Gives type and id of the repository that a body names; the account must be one that may write there."""
    if call.account is None:
        raise RefusedError(401, "Invalid username or password.")
    values = call.json
    owner = values.get("organization") or call.account.user
    call.check_may_write(owner)
    return values.get("type") or "model", f"{owner}/{values['name']}"


@route("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    """Makes a repository; 409 where there is one."""
    repo_type, repo_id = _wanted(call)
    values = call.json
    existing = call.store.repositories.get((repo_type, repo_id))
    if existing is not None:
        body = {"error": "You already created this repo", "url": call.url(existing)}
        return Answer(409, body, {"X-Error-Message": body["error"]})
    private = values.get("visibility") == "private" or values.get("private") is True
    repository = call.store.create(repo_type, repo_id, private=private)
    return Answer(body={"url": call.url(repository), "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Answer:
    """Deletes a repository."""
    repo_type, repo_id = _wanted(call)
    repository = call.store.find(repo_type, repo_id, call.account)
    del call.store.repositories[repository.type, repository.id]
    return Answer()


@route("POST", "/api/repos/move")
def move(call: Call) -> Answer:
    """Gives a repository another id."""
    values = call.json
    repository = call.store.find(values.get("type") or "model", values["fromRepo"], call.account)
    target = values["toRepo"]
    for owner in (repository.owner, target.partition("/")[0]):
        call.check_may_write(owner)
    if (repository.type, target) in call.store.repositories:
        raise RefusedError(409, "There is a repo of this name")
    del call.store.repositories[repository.type, repository.id]
    repository.id = target
    call.store.repositories[repository.type, target] = repository
    return Answer()


@route("PUT", f"{REPO}/settings")
def settings(call: Call) -> Answer:
    """Makes a repository private or public."""
    repository, values = call.repository(write=True), call.json
    wanted = values.get("private", values.get("visibility"))
    if wanted is not None:
        repository.private = wanted in (True, "private")
    return Answer(body={"private": repository.private})


@route("GET", f"/api/(?P<types>{'|'.join(TYPES)})")
def listing(call: Call) -> Answer:
    """Lists the repositories that the account may see, of one author where that is asked for."""
    authors = call.parameters.get("author", [])
    seen = [
        repository
        for repository in call.store.repositories.values()
        if repository.type == TYPES[call.words["types"]]
        and (
            not repository.private or (call.account is not None and call.store.belongs(call.account, repository.owner))
        )
        and (not authors or repository.owner in authors)
    ]
    return Answer(body=[_info(repository, repository.at("main")) for repository in seen])


@route("GET", f"{REPO}(?:/revision/(?P<revision>[^/]+))?")
def info(call: Call) -> Answer:
    """Says what a repository is at a revision."""
    repository = call.repository()
    return Answer(body=_info(repository, repository.at(call.words.get("revision", "main"))))


def _info(repository: Repository, commit: Commit) -> dict[str, object]:
    return {
        "_id": commit.id[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.owner,
        "sha": commit.id,
        "private": repository.private,
        "disabled": False,
        "gated": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "createdAt": _time(repository.commits(commit.id)[-1]),
        "lastModified": _time(commit),
        "siblings": [{"rfilename": path} for path in sorted(commit.blobs)],
    }


def _time(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{commit.date.microsecond // 1000:03d}Z"


@route("GET", f"{REPO}/commits/(?P<revision>[^/]+)")
def commits(call: Call) -> Answer:
    """Gives the history of a revision, newest first."""
    found = call.repository().commits(call.words["revision"])
    return Answer(
        body=[
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": _time(commit),
            }
            for commit in found
        ]
    )


@route("GET", f"{REPO}/refs")
def refs(call: Call) -> Answer:
    """Gives branches and tags."""
    repository = call.repository()
    pulls = {name: commit for name, commit in repository.branches.items() if name.startswith("refs/pr/")}
    branches = {name: commit for name, commit in repository.branches.items() if name not in pulls}
    return Answer(
        body={
            "branches": _named(branches, "refs/heads/"),
            "tags": _named(repository.tags, "refs/tags/"),
            "converts": [],
            "pullRequests": _named(pulls, ""),
        }
    )


def _named(found: dict[str, str], prefix: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": commit} for name, commit in found.items()]


@route("POST", f"{REPO}/branch/(?P<name>[^/]+)")
def create_branch(call: Call) -> Answer:
    """Makes a branch; 409 where there is one."""
    repository, name = call.repository(write=True), call.words["name"]
    if name in repository.branches:
        raise RefusedError(409, "Reference already exists")
    repository.branches[name] = repository.at(call.json.get("startingPoint", "main")).id
    return Answer()


@route("DELETE", f"{REPO}/branch/(?P<name>[^/]+)")
def delete_branch(call: Call) -> Answer:
    """Deletes a branch other than the first."""
    repository, name = call.repository(write=True), call.words["name"]
    if name == "main" or name not in repository.branches:
        raise RefusedError(403 if name == "main" else 404, "Reference cannot be deleted", "RevisionNotFound")
    del repository.branches[name]
    return Answer()


@route("POST", f"{REPO}/tag/(?P<revision>[^/]+)")
def create_tag(call: Call) -> Answer:
    """Tags a revision; 409 where the tag is taken."""
    repository, name = call.repository(write=True), call.json["tag"]
    if name in repository.tags:
        raise RefusedError(409, "Tag reference exists already")
    repository.tags[name] = repository.at(call.words["revision"]).id
    return Answer()


@route("DELETE", f"{REPO}/tag/(?P<name>[^/]+)")
def delete_tag(call: Call) -> Answer:
    """Deletes a tag."""
    repository = call.repository(write=True)
    if repository.tags.pop(call.words["name"], None) is None:
        raise RefusedError(404, "Tag not found", "RevisionNotFound")
    return Answer()


@route("POST", f"{REPO}/super-squash/(?P<revision>[^/]+)")
def squash(call: Call) -> Answer:
    """Makes one commit of a branch's history."""
    repository, branch = call.repository(write=True), call.words["revision"]
    repository.at(branch)
    author = cast("str", call.account and call.account.user)
    repository.squash(branch, call.json.get("message") or "Super-squash branch", author)
    return Answer()
