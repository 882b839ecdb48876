"""What the Hub keeps: accounts, repositories, and their commits, each a snapshot of all files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha1, sha256
from typing import Final, Literal

RepoType = Literal["model", "dataset", "space"]
Role = Literal["read", "write"]

_LARGE_BYTES: Final = 10 * 2**20
_LARGE_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".parquet", ".arrow", ".gz")
INITIAL: Final = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % name.encode() for name in _LARGE_SUFFIXES)


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what it allows."""

    user: str
    role: Role = "write"


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is kept apart from its repository: by its name, its size, or because it is no text."""
    return path.endswith(_LARGE_SUFFIXES) or size > _LARGE_BYTES or b"\0" in sample


@dataclass(frozen=True)
class Blob:
    """The content of a file."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, the name of a large file."""
        return sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What stands in the repository in place of a large file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def oid(self) -> str:
        """Git's name of what stands in the repository."""
        return git_oid(self.pointer if self.large else self.content)


def git_oid(content: bytes) -> str:
    """Gives git's name of a content."""
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files, and how it came about."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime
    blobs: Mapping[str, Blob] = field(repr=False)

    @property
    def files(self) -> dict[str, bytes]:
        """Path -> content."""
        return {path: blob.content for path, blob in sorted(self.blobs.items())}


class MissingError(LookupError):
    """A revision, file or repository that is not there; `code` is the Hub's name of the error."""

    def __init__(self, code: str, text: str, commit: str | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.commit = code, text, commit


class Repository:
    """A repository: its commits, branches and tags.

    Attributes:
        id: `owner/name`.
        branches, tags: name -> id of a commit.
    """

    def __init__(self, repo_id: str, repo_type: RepoType, *, private: bool) -> None:
        self.id, self.type, self.private = repo_id, repo_type, private
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._commits: dict[str, Commit] = {}
        self.add("main", {".gitattributes": Blob(INITIAL, large=False)}, "initial commit", "", self.owner)

    @property
    def owner(self) -> str:
        """User or organization."""
        return self.id.partition("/")[0]

    def at(self, revision: str) -> Commit:
        """Gives the commit that a branch, a tag or (part of) an id means.

        Raises:
            MissingError: none.
        """
        name = revision.removeprefix("refs/heads/")
        found = self.branches.get(name, self.tags.get(revision.removeprefix("refs/tags/"), revision))
        for commit_id, commit in self._commits.items():
            if len(found) >= 7 and commit_id.startswith(found):
                return commit
        raise MissingError("RevisionNotFound", f"Invalid rev id: {revision}")

    def add(self, branch: str, blobs: Mapping[str, Blob], title: str, description: str, author: str) -> Commit:
        """Puts a new commit on top of `branch`."""
        parent = self.branches.get(branch)
        named = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(blobs.items()))
        text = f"{self.type} {self.id} {len(self._commits)} {parent} {author} {title}\n{description}\n{named}"
        commit_id = sha1(text.encode()).hexdigest()
        commit = Commit(commit_id, parent, title, description, author, datetime.now(UTC), dict(blobs))
        self._commits[commit_id] = commit
        self.branches[branch] = commit_id
        return commit

    def commits(self, revision: str = "main") -> list[Commit]:
        """Gives the commits of a revision, newest first."""
        return list(self._back(self.at(revision)))

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Gives path -> content of a revision."""
        return self.at(revision).files

    def squash(self, branch: str, title: str, author: str) -> None:
        """Replaces the commits of a branch by one with the same files."""
        blobs = self.at(branch).blobs
        del self.branches[branch]
        self.add(branch, blobs, title, "", author)

    def _back(self, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit.parent is not None:
            commit = self._commits[commit.parent]
            yield commit


class Store:
    """All accounts, repositories and large files."""

    def __init__(self, accounts: Mapping[str, Account], orgs: Mapping[str, list[str]]) -> None:
        self.accounts, self.orgs = dict(accounts), {user: list(names) for user, names in orgs.items()}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, str] = {}
        """Ticket of an upload -> SHA-256 that it is for."""

    def may_write(self, account: Account | None, owner: str) -> bool:
        """Whether a token lets its user write under a name."""
        return account is not None and account.role == "write" and self.belongs(account, owner)

    def belongs(self, account: Account, owner: str) -> bool:
        """Whether a name is the user's own, or that of one of the user's organizations."""
        return owner == account.user or owner in self.orgs.get(account.user, [])

    def find(self, repo_type: str, repo_id: str, account: Account | None) -> Repository:
        """Gives a repository that `account` may see.

        Raises:
            MissingError: there is none.
        """
        repository = self.repositories.get((repo_type, repo_id))
        if repository is None or (
            repository.private and (account is None or not self.belongs(account, repository.owner))
        ):
            raise MissingError("RepoNotFound", "Repository not found")
        return repository

    def create(self, repo_type: RepoType, repo_id: str, *, private: bool) -> Repository:
        """Makes a repository with its first commit."""
        repository = self.repositories[repo_type, repo_id] = Repository(repo_id, repo_type, private=private)
        return repository

    def blob(self, path: str, content: bytes) -> Blob:
        """Gives the blob of a file, kept apart if it is large."""
        blob = Blob(content, is_large(path, len(content), content[:512]) and bool(content))
        if blob.large:
            self.objects[blob.sha256] = content
        return blob
