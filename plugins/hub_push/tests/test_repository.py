import pytest

from trainer_core_hub_push.client import hub_api, is_transient
from trainer_core_hub_push.entries import Push
from trainer_core_hub_push.outbox import Outbox
from trainer_core_hub_push.repository import RACES, prepare, refusal, send

REPO = "user/first"


@pytest.fixture
def entry(tmp_path):
    """Makes an entry of texts."""

    def make(push, **files):
        paths = {}
        for name, text in files.items():
            paths[name.replace("__", ".")] = path = tmp_path / name
            path.write_bytes(text.encode())
        return Outbox(tmp_path / "run").add(push, paths)

    return make


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repo(REPO).commits(revision)]


def fails_for_now(work):
    try:
        work()
    except Exception as error:
        return is_transient(error)
    return False


@pytest.mark.parametrize(
    ("token", "repo", "problem"),
    [
        (
            None,
            "first",
            "hub_token: is needed to push, got None. "
            "Set hub_token or the variable HF_TOKEN, or log in with `hf auth login`.",
        ),
        ("hf_reader", "first", "hub_token: may only read from the Hub, got a token of role 'read'. "),
        ("hf_nobody", "first", "hub_token: the Hub does not know it, got "),
        ("hf_other", "user/first", "hub_model_id: the Hub refuses 'user/first', got "),
        ("hf_other", "user/there", "hub_model_id: the Hub refuses 'user/there', got "),
        ("hf_writer", "elsewhere/first", "hub_model_id: the Hub refuses 'elsewhere/first', got "),
    ],
)
def test_what_the_hub_would_refuse_is_said(hub, token, repo, problem):
    hub.create("user/there")
    told = refusal(hub_api(token), Push(repo, "Model"))
    assert told.startswith(problem)
    assert token is None or token not in told


@pytest.mark.parametrize("revision", [None, "trial"])
def test_asking_makes_repository_and_branch_and_no_commit(hub, api, revision):
    for _ in range(2):
        assert refusal(api, Push("first", "Model", revision=revision, private=True)) == ""
    repository = hub.repo(REPO)
    assert repository.private
    assert sorted(repository.branches) == sorted({"main", revision or "main"})
    assert hub.count("POST", r"/commit/") == 0


def test_a_hub_that_is_not_reached_raises(hub, api):
    hub.stop()
    assert fails_for_now(lambda: refusal(api, Push("first", "Model")))


def test_an_entry_becomes_one_commit(hub, api, entry):
    made = entry(Push("first", "Training in progress", path="last", revision="trial"), a="a", b="b")
    commit = send(api, prepare(api, made.push), made)
    head = hub.repo(REPO).commits("trial")[0]
    assert hub.repo(REPO).files("trial") | {"last/a": b"a", "last/b": b"b"} == hub.repo(REPO).files("trial")
    assert (commit.oid, head.title, head.description) == (
        head.id,
        "Training in progress",
        f"trainer_core push {made.id}",
    )
    assert "last/a" not in hub.repo(REPO).files("main")


def test_a_commit_deletes_what_it_replaces_and_nothing_else(hub, api, entry):
    hub.create(REPO)
    hub.commit(REPO, {"last/a": b"old", "last/sub/gone": b"old", "other/a": b"kept", "a": b"kept"}, message="before")
    made = entry(Push(REPO, "after", path="last", replaces=("last/*",)), a="new", b="new")
    send(api, REPO, made)
    files = hub.repo(REPO).files()
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == {
        "last/a": b"new",
        "last/b": b"new",
        "other/a": b"kept",
        "a": b"kept",
    }
    assert titles(hub)[:2] == ["after", "before"]


@pytest.mark.parametrize("kind", ["lost", "cut_answer"])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, api, entry, kind):
    hub.create(REPO)
    before = titles(hub)
    made = entry(Push(REPO, "mine"), a="a")
    hub.fault("POST", r"/commit/", kind)
    assert fails_for_now(lambda: send(api, REPO, made))
    assert titles(hub) == ["mine", *before]
    commit = send(api, REPO, made)
    assert titles(hub) == ["mine", *before]
    assert commit.oid == hub.repo(REPO).commits()[0].id
    assert commit.commit_url == f"{hub.endpoint}/{REPO}/commit/{commit.oid}"


def test_a_commit_whose_answer_was_lost_is_found_below_those_of_others(hub, api, entry):
    hub.create(REPO)
    made = entry(Push(REPO, "mine"), a="a")
    hub.fault("POST", r"/commit/", "lost")
    assert fails_for_now(lambda: send(api, REPO, made))
    hub.commit(REPO, {"a": b"theirs"}, message="theirs")
    mine = hub.repo(REPO).commits()[1].id
    assert send(api, REPO, made).oid == mine
    assert hub.repo(REPO).files()["a"] == b"theirs"


@pytest.mark.parametrize("kind", ["cut", 503, 429])
def test_a_commit_that_was_not_made_is_made_at_the_next_try(hub, api, entry, kind):
    hub.create(REPO)
    before = titles(hub)
    made = entry(Push(REPO, "mine"), a="a")
    hub.fault("POST", r"/commit/", kind)
    assert fails_for_now(lambda: send(api, REPO, made))
    assert titles(hub) == before
    send(api, REPO, made)
    assert titles(hub) == ["mine", *before]


def test_a_commit_that_somebody_overtook_is_built_on_theirs(hub, api, entry, monkeypatch):
    hub.create(REPO)
    made = entry(Push(REPO, "mine", replaces=("b*",)), a="a")
    of_library = type(api).create_commit
    overtaken = []

    def overtake(self, *args, **kwargs):
        if not overtaken:
            overtaken.append(hub.commit(REPO, {"b": b"b", "c": b"c"}, message="theirs"))
        return of_library(self, *args, **kwargs)

    monkeypatch.setattr(type(api), "create_commit", overtake)
    send(api, REPO, made)
    assert titles(hub)[:2] == ["mine", "theirs"]
    assert sorted(hub.repo(REPO).files().keys() & {"a", "b", "c"}) == ["a", "c"]


def test_a_commit_that_is_overtaken_for_ever_is_given_up(hub, api, entry, monkeypatch):
    hub.create(REPO)
    made = entry(Push(REPO, "mine"), a="a")
    of_library, tries = type(api).create_commit, []

    def overtake(self, *args, **kwargs):
        tries.append(hub.commit(REPO, {"b": str(len(tries)).encode()}, message="theirs"))
        return of_library(self, *args, **kwargs)

    monkeypatch.setattr(type(api), "create_commit", overtake)
    with pytest.raises(Exception, match="412"):
        send(api, REPO, made)
    assert len(tries) == RACES
    assert "mine" not in titles(hub)


def test_what_is_there_already_makes_no_commit(hub, api, entry):
    hub.create(REPO)
    hub.commit(REPO, {"a": b"a"}, message="before")
    before = titles(hub)
    made = entry(Push(REPO, "mine"), a="a")
    assert send(api, REPO, made).oid == hub.repo(REPO).commits()[0].id
    assert titles(hub) == before


def test_uploads_show_no_progress_bars(hub, api, entry, capfd):
    made = entry(Push("first", "weights"), model__safetensors="\0" * 5000, more__safetensors="\1" * 5000)
    send(api, prepare(api, made.push), made)
    assert hub.repo(REPO).files()["more.safetensors"] == b"\1" * 5000
    assert capfd.readouterr().err == ""


def test_progress_bars_of_others_stay_as_they_were(hub, api, entry):
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    made = entry(Push("first", "weights"), a="a")
    send(api, prepare(api, made.push), made)
    assert are_progress_bars_disabled() == before


def test_a_public_repository_stays_public_and_that_is_said_once(hub, api, caplog):
    hub.create(REPO)
    told = set()
    for _ in range(2):
        assert refusal(api, Push(REPO, "Model", private=True), told) == ""
    assert prepare(api, Push(REPO, "Model", private=True), told) == REPO
    assert not hub.repo(REPO).private
    assert caplog.messages == [
        f"{REPO}: is public already and stays so, private=True holds for a repository that is made. "
        f"Change it at {hub.endpoint}/{REPO}/settings."
    ]


@pytest.mark.parametrize(("is_private", "wanted"), [(True, True), (False, False), (False, None), (True, False)])
def test_a_repository_as_it_was_wanted_is_not_spoken_of(hub, api, caplog, is_private, wanted):
    hub.create(REPO, private=is_private)
    assert prepare(api, Push(REPO, "Model", private=wanted), set()) == REPO
    assert caplog.messages == []
