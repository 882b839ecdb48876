import logging
import os
import threading
from time import monotonic

import pytest

from trainer_core import PluginError
from trainer_core_hub_push.client import hub_api
from trainer_core_hub_push.entries import Push
from trainer_core_hub_push.outbox import Outbox
from trainer_core_hub_push.patience import Patience, duration, too_long
from trainer_core_hub_push.uploading import Uploader

REPO = "user/first"
QUICK = Patience(retries=6, backoff_seconds=0.01, max_backoff_seconds=0.04)
TIRELESS = Patience(retries=100_000, backoff_seconds=0.01, max_backoff_seconds=0.04)


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "run")


@pytest.fixture
def queue(outbox, tmp_path):
    """Queues a push of one file, whose text is the message."""

    def add(message, key="", name="file.txt", repo="first"):
        file = tmp_path / f"source-{name}"
        file.write_text(message)
        return outbox.add(Push(repo, message, key=key), {name: file})

    return add


@pytest.fixture
def uploader(outbox):
    return Uploader(outbox, lambda entry: hub_api("hf_writer"), QUICK)


def finish(uploader, seconds=120):
    uploader.begin()
    assert uploader.wait(seconds)


def mine(hub):
    """Gives the titles of commits that were pushed, oldest first."""
    commits = reversed(hub.repo(REPO).commits())
    return [commit.title for commit in commits if commit.description.startswith("trainer_core push")]


def account(uploader):
    return uploader.account.done, uploader.account.replaced, uploader.account.last_error


def test_there_is_no_thread_when_there_is_nothing_to_push(hub, uploader):
    before = set(threading.enumerate())
    finish(uploader)
    assert not uploader.is_active
    for thread in set(threading.enumerate()) - before:  # on its way out
        thread.join(60)
        assert not thread.is_alive()
    assert hub.requests == []


def test_entries_arrive_in_order_and_leave_the_outbox(hub, uploader, outbox, queue):
    for number in range(3):
        queue(f"push {number}", name=f"{number}.txt")
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1", "push 2"]
    assert outbox.entries() == []
    assert account(uploader) == (3, 0, "")
    assert hub.count("POST", r"/api/repos/create") == 1


def test_a_newer_push_of_the_same_key_replaces_older_ones(hub, uploader, outbox, queue):
    queue("model 1", key="model")
    queue("other", name="other.txt")
    queue("model 2", key="model")
    queue("model 3", key="model")
    finish(uploader)
    assert mine(hub) == ["other", "model 3"]
    assert account(uploader) == (2, 2, "")
    assert outbox.entries() == []


def test_a_push_of_the_same_key_to_another_place_replaces_nothing(hub, uploader, queue):
    queue("model 1", key="model")
    queue("elsewhere", key="model", repo="second")
    finish(uploader)
    assert mine(hub) == ["model 1"]
    assert hub.repo("user/second").files()["file.txt"] == b"elsewhere"


def test_a_push_without_a_key_is_never_replaced(hub, uploader, queue):
    for number in range(3):
        queue(f"push {number}")
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1", "push 2"]


HASTY = [("POST", r"/api/repos/create"), ("GET", r"/api/models/user/first"), ("POST", r"/commit/")]
PATIENT = [("POST", r"/preupload/")]  # the client itself tries these again, after a second


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        *((*place, kind) for place in HASTY for kind in (429, 500, 503, "cut", "lost", "cut_answer")),
        *((*place, kind) for place in PATIENT for kind in (503, "lost")),
    ],
)
def test_a_passing_failure_is_waited_out_and_nothing_is_committed_twice(hub, uploader, queue, method, path, kind):
    hub.fault(method, path, kind, times=1 if "preupload" in path else 2)
    queue("push 0", name="0.txt")
    queue("push 1", name="1.txt")
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1"]
    assert {"0.txt", "1.txt"} < hub.repo(REPO).files().keys()
    assert account(uploader) == (2, 0, "")


def test_a_failure_is_said_with_the_next_try(hub, uploader, queue, caplog):
    hub.fault("POST", r"/commit/", 503)
    queue("push 0")
    finish(uploader)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "trainer_core.hub_push"]
    assert told.startswith("'push 0': was not pushed, HfHubHTTPError 503")
    assert told.partition(". The next try is in ")[2].endswith(" s.")


def test_the_wait_that_the_hub_asks_for_is_honoured(hub, uploader, queue):
    hub.fault("POST", r"/commit/", 429, retry_after=1)
    queue("push 0")
    started = monotonic()
    finish(uploader)
    assert monotonic() - started >= 1
    assert mine(hub) == ["push 0"]


def test_a_wait_that_is_too_long_pauses_and_is_said(hub, uploader, outbox, queue, caplog):
    hub.fault("POST", r"/commit/", 429, retry_after=5400)
    made = [queue(f"push {number}", name=f"{number}.txt") for number in range(2)]
    future = uploader.future_of(made[0])
    finish(uploader)
    assert outbox.entries() == made
    assert hub.count("POST", r"/commit/") == 1
    why = "This error was asked for; the Hub asks to wait 1 h 30 min, longer than the 15 min that are waited at most"
    assert uploader.account.last_error == f"HfHubHTTPError 429: {why}"
    assert caplog.messages == [f"'push 0': was not pushed, {uploader.account.last_error}. It stays in {outbox.folder}."]
    with pytest.raises(PluginError, match="the Hub asks to wait 1 h 30 min"):
        future.result(0)
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1"]


@pytest.mark.parametrize(("asked", "is_waited"), [(None, True), (0.1, True), (900.0, True), (900.1, False)])
def test_the_hub_is_waited_for_a_quarter_of_an_hour_at_most(asked, is_waited):
    assert (too_long(asked) == "") is is_waited


def test_what_fails_too_often_stays_and_goes_with_the_next_push(hub, outbox, queue, caplog):
    uploader = Uploader(outbox, lambda entry: hub_api("hf_writer"), Patience(2, 0.01, 0.02))
    hub.fault("POST", r"/commit/", 503, times=None)
    first = queue("push 0", name="0.txt")
    finish(uploader)
    assert outbox.entries() == [first]
    assert hub.count("POST", r"/commit/") == 3
    assert caplog.messages[-1].startswith("'push 0': was not pushed in 3 tries, HfHubHTTPError 503")
    assert caplog.messages[-1].endswith(f". It stays in {outbox.folder}.")
    hub.clear_faults()
    queue("push 1", name="1.txt")
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1"]
    assert account(uploader) == (2, 0, "")


def test_a_hub_that_is_away_is_waited_for(hub, outbox, queue, wait_until):
    uploader = Uploader(outbox, lambda entry: hub_api("hf_writer"), TIRELESS)
    hub.stop()
    queue("push 0")
    uploader.begin()
    wait_until(lambda: uploader.account.last_error)
    assert uploader.is_active
    hub.start()
    finish(uploader)
    assert mine(hub) == ["push 0"]


def test_an_entry_that_is_refused_itself_lets_the_others_go_on(hub, uploader, outbox, queue, caplog):
    refused = queue("---\nlicense: [\n---\n", name="README.md")
    queue("good")
    finish(uploader)
    assert mine(hub) == ["good"]
    assert outbox.entries() == [refused]
    assert any("was refused" in message for message in caplog.messages)


def test_why_an_entry_was_refused_is_known_though_a_later_one_arrived(hub, uploader, outbox, queue):
    refused = queue("---\nlicense: [\n---\n", name="README.md")
    queue("good")
    finish(uploader)
    assert mine(hub) == ["good"]
    assert "license" in uploader.account.last_error or "YAML" in uploader.account.last_error
    outbox.remove(refused)
    queue("better")
    finish(uploader)
    assert uploader.account.last_error == ""


def test_a_refused_token_pauses_all(hub, outbox, queue):
    tokens = ["hf_reader"]
    uploader = Uploader(outbox, lambda entry: hub_api(tokens[-1]), QUICK)
    hub.create(REPO)
    made = [queue("push 0", repo=REPO), queue("push 1", repo=REPO)]
    finish(uploader)
    assert outbox.entries() == made
    assert "403" in uploader.account.last_error
    tokens.append("hf_writer")
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1"]


def test_a_newer_push_replaces_one_that_is_waited_with(hub, outbox, queue, wait_until):
    uploader = Uploader(outbox, lambda entry: hub_api("hf_writer"), TIRELESS)
    hub.fault("POST", r"/commit/", 503, times=None)
    queue("model 1", key="model")
    uploader.begin()
    wait_until(lambda: uploader.account.last_error)
    queue("model 2", key="model")
    wait_until(lambda: uploader.account.replaced)
    hub.clear_faults()
    finish(uploader)
    assert mine(hub) == ["model 2"]
    assert account(uploader) == (1, 1, "")


def test_a_future_gives_the_commit(hub, uploader, queue):
    entry = queue("push 0")
    future = uploader.future_of(entry)
    finish(uploader)
    commit = hub.repo(REPO).commits()[0]
    assert future.result(0).oid == commit.id
    assert uploader.future_of(entry).result(0).oid == commit.id


def test_the_future_of_a_replaced_push_gives_the_commit_that_replaced_it(hub, uploader, queue):
    futures = [uploader.future_of(queue(f"model {number}", key="model")) for number in range(3)]
    finish(uploader)
    assert {future.result(0).oid for future in futures} == {hub.repo(REPO).commits()[0].id}


def test_the_future_of_a_push_that_was_given_up_raises_and_says_what_to_do(hub, outbox, queue):
    uploader = Uploader(outbox, lambda entry: hub_api("hf_writer"), Patience(0, 0.01, 0.01))
    hub.stop()
    future = uploader.future_of(queue("push 0"))
    finish(uploader)
    with pytest.raises(PluginError) as caught:
        future.result(0)
    told = str(caught.value)
    assert told.startswith("push_to_hub: did not arrive, got ")
    assert told.endswith(f". It is kept, `python -m trainer_core push {outbox.folder.parent}` pushes it.")


def test_a_stopped_uploader_begins_no_further_push_and_can_go_on(hub, outbox, queue):
    begun, go_on = threading.Event(), threading.Event()

    def api_of(entry):
        begun.set()
        assert go_on.wait(60)
        return hub_api("hf_writer")

    uploader = Uploader(outbox, api_of, QUICK)
    futures = [uploader.future_of(queue(f"push {number}", name=f"{number}.txt")) for number in range(3)]
    uploader.begin()
    assert begun.wait(60)
    uploader.stop()
    go_on.set()
    assert uploader.wait(60)
    assert [entry.push.message for entry in outbox.entries()] == ["push 1", "push 2"]
    with pytest.raises(PluginError, match="push_to_hub: did not arrive, the run ended before"):
        futures[2].result(0)
    finish(uploader)
    assert mine(hub) == ["push 0", "push 1", "push 2"]


def test_an_outbox_that_another_process_uploads_is_waited_for(hub, uploader, outbox, queue, wait_until):
    with outbox.lock():
        future = uploader.future_of(queue("push 0"))
        uploader.begin()
        wait_until(lambda: uploader.account.last_error)
        assert uploader.account.last_error == f"process {os.getpid()} is pushing this outbox"
        assert uploader.is_active
        assert hub.requests == []
    assert uploader.wait(60)
    assert mine(hub) == ["push 0"]
    assert future.result(0) is not None


def test_what_another_process_pushed_is_settled(hub, uploader, outbox, queue):
    with outbox.lock():
        entry = queue("push 0")
        future = uploader.future_of(entry)
        uploader.begin()
        outbox.remove(entry)
        assert uploader.wait(60)
    assert future.result(0) is None


def test_two_uploaders_of_one_outbox_push_everything_once(hub, outbox, queue):
    for number in range(6):
        queue(f"push {number}", name=f"{number}.txt")
    both = [Uploader(outbox, lambda entry: hub_api("hf_writer"), QUICK) for _ in range(2)]
    for one in both:
        one.begin()
    assert all(one.wait(60) for one in both)
    assert sorted(mine(hub)) == [f"push {number}" for number in range(6)]
    assert sum(one.account.done for one in both) == 6


def test_an_outbox_that_cannot_be_read_ends_no_more_than_the_pushing(hub, uploader, outbox, queue, caplog, monkeypatch):
    queue("push 0")

    def fail(self):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "entries", fail)
        finish(uploader)
    assert caplog.messages == ["pushing: stopped, OSError: the disk is gone. The next push goes on."]
    finish(uploader)
    assert mine(hub) == ["push 0"]


def test_a_thread_that_cannot_start_is_tried_again(hub, uploader, queue, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    queue("push 0")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            uploader.begin()
    assert not uploader.is_active
    finish(uploader)
    assert mine(hub) == ["push 0"]


def test_waits_grow_and_are_bounded():
    patience = Patience(retries=9, backoff_seconds=1.0, max_backoff_seconds=10.0)
    assert [patience.seconds(failures, 1.0, None) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert [patience.seconds(failures, 0.0, None) for failures in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert patience.seconds(10_000, 0.5, None) == 7.5
    assert patience.seconds(1, 0.0, 30.0) == 30.0
    assert patience.seconds(1, 1.0, 0.1) == 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.25 s"), (59.6, "1 min"), (90, "2 min"), (900, "15 min"), (3599, "1 h"), (5400, "1 h 30 min"),
        (7200, "2 h"), (86_400, "24 h"), (200_000, "2.3 days"), (float("inf"), "inf days"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_units_that_a_reader_counts_in(seconds, words):
    assert duration(seconds) == words


def test_pushing_draws_no_random_number_of_the_run(hub, uploader, queue):
    import random

    import numpy as np
    import torch

    hub.fault("POST", r"/commit/", 503, times=2)
    queue("push 0")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    finish(uploader)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.WARNING, "trainer_core.hub_push")
