"""The Hub on the loopback interface, asked by the true client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trainer_core_hub_push.client import hub_api, status_of
from trainer_core_hub_push.loopback import LoopbackHub

REPO = "user/thing"
FILES = {
    "README.md": b"---\ntags: [x]\n---\nhello",
    "config.json": b"{}",
    "deep/er/notes.txt": "größer".encode(),
    "deep/model.safetensors": os.urandom(70_000),
    "empty.txt": b"",
    "odd name%20#1.txt": b"odd",
}


@pytest.fixture
def folder(tmp_path):
    for path, content in FILES.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(content)
    return tmp_path / "in"


@pytest.fixture
def pushed(api, folder):
    """The first commit of FILES."""
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="first")


@pytest.fixture
def no_backoff(monkeypatch):
    """The client's waits between its own tries, cut."""
    waited = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    return waited


def own(files):
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def refused(error, action, *args, status=None, **options):
    with pytest.raises(error) as caught:
        action(*args, **options)
    assert status_of(caught.value) == status
    return str(caught.value)


# Files there and back


def test_a_folder_comes_back_file_by_file(hub, api, pushed, tmp_path):
    assert own(hub.repo(REPO).files()) == FILES
    assert (pushed.oid, pushed.repo_url.repo_id) == (hub.repo(REPO).branches["main"], REPO)
    out = tmp_path / "out"
    api.snapshot_download(REPO, local_dir=out)
    assert {path: (out / path).read_bytes() for path in FILES} == FILES


def test_a_snapshot_goes_through_the_cache_as_well(hub, pushed, tmp_path):
    snapshot = snapshot_download(REPO, endpoint=hub.endpoint, token="hf_writer", cache_dir=tmp_path / "cache")
    assert Path(snapshot, "deep/model.safetensors").read_bytes() == FILES["deep/model.safetensors"]
    one = hf_hub_download(REPO, "odd name%20#1.txt", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert Path(one).read_bytes() == b"odd"


def test_what_did_not_change_makes_no_commit(hub, api, folder, pushed):
    puts = hub.count("PUT", "/upload/")
    again = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="second")
    assert again.oid == pushed.oid
    assert [commit.title for commit in hub.repo(REPO).commits()] == ["first", "initial commit"]
    (folder / "config.json").write_text("[]")
    third = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="third")
    assert hub.repo(REPO).commits()[0].id == third.oid
    assert hub.repo(REPO).commits()[0].parent == pushed.oid
    assert (hub.count("PUT", "/upload/"), hub.count("POST", "/commit/")) == (puts, 2)


def test_large_files_are_told_by_name_size_and_content(hub, api):
    api.create_repo(REPO)
    contents = {"a.safetensors": b"a", "b.txt": b"b" * 11 * 2**20, "c.dat": b"c\0", "d.txt": b"d"}
    api.create_commit(
        REPO, [CommitOperationAdd(path, content) for path, content in contents.items()], commit_message="x"
    )
    blobs = hub.repo(REPO).at("main").blobs
    assert {path: blobs[path].large for path in contents} == {
        "a.safetensors": True, "b.txt": True, "c.dat": True, "d.txt": False,
    }  # fmt: skip


def test_a_commit_deletes_files_and_folders_and_copies(hub, api, pushed):
    operations = [
        CommitOperationDelete("config.json"),
        CommitOperationDelete("deep/"),
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationCopy("deep/model.safetensors", "copy.safetensors"),
        CommitOperationCopy("empty.txt", "copy.txt"),
    ]
    api.create_commit(REPO, operations, commit_message="much", commit_description="at once")
    expected = {path: FILES[path] for path in ("README.md", "empty.txt", "odd name%20#1.txt")}
    expected |= {"new.txt": b"new", "copy.safetensors": FILES["deep/model.safetensors"], "copy.txt": b""}
    assert own(hub.repo(REPO).files()) == expected
    newest = hub.repo(REPO).commits()[0]
    assert (newest.title, newest.description, newest.author) == ("much", "at once", "user")
    assert own(hub.repo(REPO).files(pushed.oid)) == FILES
    delete = [CommitOperationDelete("config.json")]
    refused(EntryNotFoundError, api.create_commit, REPO, delete, commit_message="again", status=404)


def test_delete_patterns_leave_what_is_uploaded(hub, api, folder, pushed):
    hub.commit(REPO, {"deep/old.txt": b"old"})
    api.upload_folder(repo_id=REPO, folder_path=folder / "deep", path_in_repo="deep", delete_patterns="*")
    assert own(hub.repo(REPO).files()) == FILES


@pytest.mark.parametrize("path", ["../up.txt", "/root.txt", "a/../b.txt", ".git/config", "a//b"])
def test_a_path_that_leads_out_is_refused(hub, api, path):
    api.create_repo(REPO)
    operation = CommitOperationAdd("fine.txt", b"x")
    operation.path_in_repo = path
    refused(HfHubHTTPError, api.create_commit, REPO, [operation], commit_message="x", status=400)
    assert own(hub.repo(REPO).files()) == {}


def test_what_gitignore_names_is_not_uploaded(hub, api):
    api.create_repo(REPO)
    ignored = b"# a comment\n*.log\nruns/\n"
    names = {".gitignore": ignored, "a.log": b"a", "runs/b.txt": b"b", "c.txt": b"c"}
    api.create_commit(REPO, [CommitOperationAdd(path, content) for path, content in names.items()], commit_message="x")
    assert own(hub.repo(REPO).files()) == {".gitignore": ignored, "c.txt": b"c"}


def test_a_card_with_a_wrong_header_is_refused_before_anything_is_uploaded(hub, api):
    api.create_repo(REPO)
    for header in ("tags: x", "a: [", "- a", "license: 3"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_file(repo_id=REPO, path_or_fileobj=f"---\n{header}\n---\n".encode(), path_in_repo="README.md")
    assert hub.count("POST", "/preupload/") == 0
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"hi", path_in_repo="README.md")


# Looking at a repository


def test_tree_and_paths_tell_files_and_folders(api, pushed):
    top = {entry.path: type(entry).__name__ for entry in api.list_repo_tree(REPO)}
    assert top == {
        ".gitattributes": "RepoFile", "README.md": "RepoFile", "config.json": "RepoFile", "deep": "RepoFolder",
        "empty.txt": "RepoFile", "odd name%20#1.txt": "RepoFile",
    }  # fmt: skip
    deep = [entry.path for entry in api.list_repo_tree(REPO, "deep")]
    assert deep == ["deep/er", "deep/model.safetensors"]
    everything = [entry.path for entry in api.list_repo_tree(REPO, "deep", recursive=True)]
    assert everything == ["deep/er", "deep/er/notes.txt", "deep/model.safetensors"]
    model, config, folder = api.get_paths_info(REPO, ["deep/model.safetensors", "config.json", "deep", "none"])
    content = FILES["deep/model.safetensors"]
    assert (model.lfs.sha256, model.lfs.size, model.size) == (hashlib.sha256(content).hexdigest(), 70_000, 70_000)
    assert (config.blob_id, config.lfs) == (hashlib.sha1(b"blob 2\0{}").hexdigest(), None)
    assert folder.path == "deep"
    refused(EntryNotFoundError, lambda: list(api.list_repo_tree(REPO, "none")), status=404)


def test_info_history_branches_and_tags(hub, api, pushed):
    info = api.model_info(REPO)
    assert (info.id, info.sha, info.private, info.author) == (REPO, pushed.oid, False, "user")
    assert sorted(sibling.rfilename for sibling in info.siblings) == sorted([*FILES, ".gitattributes"])
    history = api.list_repo_commits(REPO)
    assert [(commit.title, commit.authors) for commit in history] == [("first", ["user"]), ("initial commit", ["user"])]
    api.create_branch(REPO, branch="refs/odd", revision=history[1].commit_id)
    api.create_tag(REPO, tag="v1", revision="main")
    refused(HfHubHTTPError, api.create_branch, REPO, branch="refs/odd", status=409)
    refused(HfHubHTTPError, api.create_tag, REPO, tag="v1", status=409)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", revision="refs/odd")
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == hub.repo(REPO).branches
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": pushed.oid}
    assert own(hub.repo(REPO).files("refs/odd")) == {"b.txt": b"b"}
    assert api.model_info(REPO, revision="v1").sha == api.model_info(REPO, revision=pushed.oid[:10]).sha == pushed.oid
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="refs/odd")
    assert (hub.repo(REPO).tags, list(hub.repo(REPO).branches)) == ({}, ["main"])
    api.super_squash_history(REPO, commit_message="one")
    assert [commit.title for commit in hub.repo(REPO).commits()] == ["one"]
    assert own(hub.repo(REPO).files()) == FILES


def test_what_is_missing_is_told_by_the_clients_errors(api, pushed):
    refused(RepositoryNotFoundError, api.model_info, "user/none", status=404)
    refused(RevisionNotFoundError, api.model_info, REPO, revision="none", status=404)
    refused(EntryNotFoundError, api.hf_hub_download, REPO, "none.txt", status=404)
    refused(RevisionNotFoundError, api.hf_hub_download, REPO, "config.json", revision="none", status=404)
    add = [CommitOperationAdd("a", b"a")]
    refused(RevisionNotFoundError, api.create_commit, REPO, add, commit_message="x", revision="none", status=404)


def test_a_commit_that_is_not_on_the_newest_one_is_refused(hub, api, pushed):
    hub.commit(REPO, {"theirs.txt": b"1"}, "in between")
    add = [CommitOperationAdd("mine.txt", b"2")]
    told = refused(
        HfHubHTTPError, api.create_commit, REPO, add, commit_message="x", parent_commit=pushed.oid, status=412
    )
    assert "A commit has happened since" in told
    head = hub.repo(REPO).branches["main"]
    add = [CommitOperationAdd("mine.txt", b"2")]
    api.create_commit(REPO, add, commit_message="x", parent_commit=head[:9])
    assert own(hub.repo(REPO).files()) == FILES | {"theirs.txt": b"1", "mine.txt": b"2"}


def test_a_pull_request_leaves_the_branch_as_it_is(hub, api, pushed):
    pull = api.upload_file(repo_id=REPO, path_or_fileobj=b"p", path_in_repo="p.txt", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert own(hub.repo(REPO).files()) == FILES
    assert own(hub.repo(REPO).files("refs/pr/1")) == FILES | {"p.txt": b"p"}
    assert [ref.ref for ref in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]


def test_repositories_are_made_listed_moved_and_deleted(hub, api):
    assert api.create_repo("bare").repo_id == "user/bare"
    refused(HfHubHTTPError, api.create_repo, "bare", status=409)
    assert api.create_repo("bare", exist_ok=True).repo_id == "user/bare"
    api.create_repo("team/data", repo_type="dataset", private=True)
    assert hub.repo("team/data", "dataset").private
    assert [info.id for info in api.list_models(author="user")] == ["user/bare"]
    assert [info.id for info in api.list_datasets()] == ["team/data"]
    assert list(hub_api("hf_other").list_datasets()) == []
    api.move_repo("user/bare", "team/better")
    api.update_repo_settings("team/better", private=True)
    assert hub.repo("team/better").private
    api.delete_repo("team/better")
    assert not api.repo_exists("team/better")


# Who may


def test_a_token_says_who_somebody_is(hub, api):
    who = api.whoami()
    assert (who["name"], [org["name"] for org in who["orgs"]]) == ("user", ["team"])
    assert who["auth"]["accessToken"]["role"] == "write"
    assert hub_api("hf_reader").whoami()["auth"]["accessToken"]["role"] == "read"
    refused(HfHubHTTPError, hub_api("hf_wrong").whoami, status=401)


def test_who_may_not_write_is_told_so(hub, api):
    api.create_repo(REPO)
    add = {"path_or_fileobj": b"a", "path_in_repo": "a.txt", "repo_id": REPO}
    for token in ("hf_reader", "hf_other"):
        refused(HfHubHTTPError, hub_api(token).upload_file, **add, status=403)
    refused(HfHubHTTPError, hub_api("hf_reader").create_repo, "user/new", status=403)
    refused(HfHubHTTPError, api.create_repo, "other/new", status=403)
    refused(HfHubHTTPError, hub_api().upload_file, **add, status=401)
    assert own(hub.repo(REPO).files()) == {}


def test_a_private_repository_is_not_there_for_others(hub, api):
    api.create_repo(REPO, private=True)
    assert api.model_info(REPO).private
    assert hub_api("hf_reader").model_info(REPO).private
    refused(RepositoryNotFoundError, hub_api("hf_other").model_info, REPO, status=404)
    refused(RepositoryNotFoundError, hub_api().model_info, REPO, status=401)
    assert not hub_api("hf_other").repo_exists(REPO)


# What goes wrong


def write(api, content=b"content", path="a.txt"):
    return api.upload_file(repo_id=REPO, path_or_fileobj=content, path_in_repo=path)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_is_answered_to_the_requests_it_is_for(hub, api, pushed, status):
    hub.fault("POST", "/commit/", status, at=2, times=2, retry_after=7)
    write(api, b"1")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as caught:
            write(api, b"2")
        assert (status_of(caught.value), caught.value.response.headers["Retry-After"]) == (status, "7")
    write(api, b"3")
    assert [commit.files["a.txt"] for commit in hub.repo(REPO).commits()[:2]] == [b"3", b"1"]
    statuses = [request.status for request in hub.requests if "/commit/" in request.path]
    assert statuses == [200, 200, status, status, 200]


def test_the_client_tries_large_files_again_by_itself(hub, api, no_backoff):
    api.create_repo(REPO)
    hub.fault("PUT", "/upload/", 503, times=2)
    hub.fault("POST", "/preupload/", 500)
    write(api, b"x\0" * 9, "a.bin")
    assert hub.repo(REPO).files()["a.bin"] == b"x\0" * 9
    assert no_backoff == [1, 1, 2]


def test_a_cut_request_does_nothing(hub, api, pushed):
    fault = hub.fault("POST", "/commit/", "cut")
    with pytest.raises(Exception, match=r"disconnected|reset|[Bb]roken"):
        write(api)
    assert own(hub.repo(REPO).files()) == FILES
    assert fault.seen == 1
    write(api)
    assert hub.repo(REPO).files()["a.txt"] == b"content"


def test_a_lost_answer_is_of_a_commit_that_is_there(hub, api, pushed):
    hub.fault("POST", "/commit/", "lost")
    with pytest.raises(Exception, match="disconnected"):
        write(api)
    assert hub.repo(REPO).files()["a.txt"] == b"content"
    assert [request.status for request in hub.requests if "/commit/" in request.path][-1] == 0


def test_a_cut_answer_is_resumed_where_it_was_cut(hub, api, pushed, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fault("GET", "/resolve/.*model.safetensors", "cut_answer")
    path = api.hf_hub_download(REPO, "deep/model.safetensors", local_dir=tmp_path / "out")
    assert Path(path).read_bytes() == FILES["deep/model.safetensors"]
    statuses = [request.status for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert statuses == [200, 206]


def test_a_range_is_given_as_asked(hub, api, pushed):
    from huggingface_hub.utils import get_session

    url = f"{hub.endpoint}/{REPO}/resolve/main/deep/model.safetensors"
    whole, got = FILES["deep/model.safetensors"], {}
    for wanted in ("bytes=0-9", "bytes=69990-", "bytes=10-99999999", "bytes=70000-"):
        response = get_session().get(url, headers={"Range": wanted})
        got[wanted] = (response.status_code, response.headers["Content-Range"])
        assert (
            response.status_code == 416
            or response.content == whole[int(wanted[6:].split("-")[0]) :][: len(response.content)]
        )
    assert got == {
        "bytes=0-9": (206, "bytes 0-9/70000"),
        "bytes=69990-": (206, "bytes 69990-69999/70000"),
        "bytes=10-99999999": (206, "bytes 10-69999/70000"),
        "bytes=70000-": (416, "bytes */70000"),
    }


def test_a_delay_is_waited_out(hub, api, pushed):
    hub.fault("GET", "whoami", "delay", seconds=0.2)
    began = time.monotonic()
    api.whoami()
    assert time.monotonic() - began >= 0.2
    hub.delay = 0.1
    began = time.monotonic()
    api.whoami()
    assert time.monotonic() - began >= 0.1


def test_the_line_carries_no_more_than_it_may(hub, api, pushed):
    hub.bytes_per_second = 200_000
    began = time.monotonic()
    write(api, os.urandom(60_000), "big.bin")
    assert time.monotonic() - began >= 0.3
    hub.bytes_per_second = None
    assert len(hub.repo(REPO).files()["big.bin"]) == 60_000


def test_faults_are_forgotten_when_that_is_asked_for(hub, api, pushed):
    hub.fault("*", ".", 500, times=None)
    for _ in range(3):
        refused(HfHubHTTPError, api.whoami, status=500)
    hub.clear_faults()
    assert api.whoami()["name"] == "user"


def test_a_hub_that_stops_comes_back_where_it_was(hub, api, pushed):
    endpoint, before = hub.endpoint, len(hub.requests)
    hub.stop()
    with pytest.raises(Exception, match="refused"):
        api.whoami()
    assert len(hub.requests) == before
    hub.start()
    assert hub.endpoint == endpoint
    assert api.whoami()["name"] == "user"
    assert own(hub.repo(REPO).files()) == FILES


# The server itself


def test_a_path_that_is_unknown_is_told(hub, api):
    from huggingface_hub.utils import get_session

    response = get_session().get(f"{hub.endpoint}/api/nonsense")
    assert (response.status_code, response.json()) == (404, {"error": "No such path: /api/nonsense"})


def test_an_error_of_the_server_itself_is_raised_when_it_stops():
    from huggingface_hub.utils import get_session

    with pytest.raises(KeyError, match="files"), LoopbackHub({"hf_mine": "user"}) as hub:  # noqa: PT012
        hub.create(REPO)
        with pytest.raises(Exception, match="disconnected"):
            get_session().post(
                f"{hub.endpoint}/api/models/{REPO}/preupload/main",
                json={},
                headers={"Authorization": "Bearer hf_mine"},
            )


def test_it_listens_on_the_loopback_interface_only(hub):
    assert hub._server.server_address[0] == "127.0.0.1"


def test_nothing_of_it_is_left(hub):
    xet, threads = constants.HF_HUB_DISABLE_XET, set(threading.enumerate())
    constants.HF_HUB_DISABLE_XET = False
    try:
        with LoopbackHub() as other:
            assert constants.HF_HUB_DISABLE_XET is True
            HfApi(endpoint=other.endpoint, token="hf_loopback").whoami()
        assert constants.HF_HUB_DISABLE_XET is False
    finally:
        constants.HF_HUB_DISABLE_XET = xet
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
        assert not thread.is_alive()


def test_two_clients_at_a_time_lose_no_commit(hub, api, pushed):
    def many(which):
        for number in range(5):
            write(hub_api("hf_writer"), b"x", f"{which}-{number}.txt")

    threads = [threading.Thread(target=many, args=(which,)) for which in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.repo(REPO).commits()) == 12
    assert len(own(hub.repo(REPO).files())) == len(FILES) + 10


def test_a_child_process_finds_it_by_its_environment(hub, tmp_path):
    code = """
import huggingface_hub as h
h.create_repo("mine")
h.upload_file(repo_id="user/mine", path_or_fileobj=b"x" * 20_000 + bytes(1), path_in_repo="a.bin")
print(len(open(h.hf_hub_download("user/mine", "a.bin"), "rb").read()))
"""
    environment = {**os.environ, **hub.environment, "HF_TOKEN": "hf_writer", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("20001\n", 0), done.stderr
