"""Ranks that watch each other, here as threads of one process that know nothing of torch."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.toys import Classifier, pairs, trainer_for
from trainer_core.connections import cut
from trainer_core.lifeline import Lifeline
from trainer_core.rendezvous import meeting_place
from trainer_core.watch import Watch
from trainer_core.whereabouts import whereabouts

TOKEN = "secret"


class Rank:
    """A watch with what it saw and did."""

    def __init__(self, rank, bound=60.0):
        self.about = {"phase": "STEP", "step": 3, "where": "train.py:1 in f", "waits": True, "pid": 7, "host": "h"}
        self.cuts = threading.Event()
        self.watch = Watch(rank, bound, lambda: dict(self.about), self.cut)
        self.watch._end_process = lambda: None

    def cut(self):
        self.cuts.set()
        return True

    def falls_silent(self):
        """Lets its thread stand still, as that of a process that is stopped."""
        self.watch._check = lambda now: threading.Event().wait()


@pytest.fixture
def ranks():
    """Gives ranks that have met; ends them."""
    made = []

    def make(number, bound=60.0):
        made.extend(Rank(rank, 60.0 if rank else bound) for rank in range(number))
        port = made[0].watch.open("localhost")
        made[0].watch.start(TOKEN)
        for rank in made[1:]:
            rank.watch.join("localhost", port, TOKEN)
            rank.watch.start(TOKEN)
        deadline = time.monotonic() + 20
        while len(made[0].watch._peers) < number - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return made

    yield make
    for rank in made:
        rank.watch._is_ending.set()
        if rank.watch._thread.is_alive() and "_check" not in vars(rank.watch):
            rank.watch.close()


def break_off(rank):
    """Closes its connections, as the death of its process does."""
    for peer in rank.watch._peers.values():
        peer.line.connection.shutdown(socket.SHUT_RDWR)


GONE = (
    "rank {}: died without a word, it was killed or crashed; got process 7 on h, last in phase STEP after step 3, "
    "train.py:1 in f. Look at its output and at the machine's memory."
)


def test_a_connection_that_ends_without_a_farewell_is_a_death_that_all_hear_of(ranks):
    main, first, second = ranks(3)
    break_off(first)
    for rank in (main, second):
        assert rank.cuts.wait(20)
        assert rank.watch.verdict == GONE.format(1)


def test_without_rank_0_each_knows_that_it_is_gone(ranks):
    main, first, second = ranks(3)
    time.sleep(1.2)  # until rank 0 has said a word
    main.watch.verdict = "gone"  # a process that is gone judges nobody
    break_off(main)
    for rank in (first, second):
        assert rank.cuts.wait(20)
        assert rank.watch.verdict == GONE.format(0)


def test_a_rank_that_takes_leave_is_not_missed(ranks):
    main, first, second = ranks(3)
    first.watch.close()
    time.sleep(1.5)
    assert (main.watch.verdict, second.watch.verdict, main.cuts.is_set()) == ("", "", False)


def test_a_failure_is_told_to_all_with_what_failed(ranks):
    main, first, second = ranks(3)
    first.about["step"] = 9
    first.watch.fail("ValueError: boom", is_together=True)
    assert main.cuts.wait(20)
    assert second.cuts.wait(20)
    verdict = "rank 1: failed in phase STEP after step 9, got ValueError: boom. Look at its output."
    for rank in (main, first, second):
        assert (rank.watch.verdict, rank.watch.is_together) == (verdict, True)
    assert not first.cuts.is_set()


def test_only_the_first_loss_counts(ranks):
    main, first, second = ranks(3)
    first.watch.fail("ValueError: boom", is_together=True)
    second.watch.fail("DistributedError: rank 1", is_together=False)
    assert second.watch.verdict.startswith("rank 1: failed in phase STEP")
    assert main.watch.is_together


def test_silence_beyond_the_bound_is_a_loss(ranks):
    main, first, second = ranks(3, bound=2.0)
    first.falls_silent()
    for rank in (main, second):
        assert rank.cuts.wait(20)
        assert re.match(r"rank 1: gave no sign of life for [23] s, it is stopped or its", rank.watch.verdict)


def test_time_in_which_a_watcher_did_not_run_itself_counts_for_nobody(ranks):
    main, _ = ranks(2, bound=2.0)
    check, slept = main.watch._check, threading.Event()

    def stand_still(now):
        if not slept.is_set():
            slept.set()
            time.sleep(4)
        check(now)

    main.watch._check = stand_still
    assert slept.wait(20)
    time.sleep(5)
    del main.watch._check
    assert main.watch.verdict == ""


def test_whoever_is_in_no_collective_when_one_times_out_keeps_the_others_waiting(ranks):
    _, first, second = ranks(3)
    first.about["waits"] = False
    time.sleep(1.2)  # until it has said so
    assert str(second.watch.explain("Timed out waiting 3000ms for recv")) == (
        "rank 1: kept the others waiting, who gave up after ddp_timeout; got process 7 on h, in phase STEP after step "
        "3, train.py:1 in f. Look for a lock, or for a collective that this rank does not come to."
    )


def test_a_collective_that_breaks_though_all_live_is_said_so(ranks):
    main, *_ = ranks(2)
    doing = "in phase STEP after step 3, train.py:1 in f"
    assert str(main.watch.explain("Connection reset by peer")) == (
        f"launch: a collective broke though all ranks live (rank 0 {doing}; rank 1 {doing}), got Connection reset by "
        f"peer. Look at the network."
    )


def test_a_stranger_is_neither_heard_nor_watched(ranks):
    main, _ = ranks(2)
    port = main.watch._listener.getsockname()[1]
    for words in (
        b'{"rank": 1, "token": "guessed", "failed": "all"}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"x" * 99999,
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
            time.sleep(0.1)
    time.sleep(1.2)
    assert (main.watch.verdict, sorted(main.watch._peers)) == ("", [1])
    assert main.watch._thread.is_alive()


def test_a_process_that_does_not_end_is_ended_with_its_place_and_the_cause():
    program = (
        "import threading, time\n"
        "from trainer_core.watch import Watch\n"
        "watch = Watch(0, 1.0, lambda: {'waits': True}, lambda: False)\n"
        "watch.open('localhost')\n"
        "watch.start('t')\n"
        "watch._judge('rank 1: died.')\n"
        "def in_a_lock():\n"
        "    threading.Event().wait()\n"
        "in_a_lock()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("DistributedError: rank 1: died.\nrank 0 does not end by itself, it is here:\n")
    assert 'File "<string>", line 8 in in_a_lock' in done.stderr


def test_a_forked_child_lets_go_of_the_connection():
    here, there = socket.socketpair()
    line, other = Lifeline(here), Lifeline(there)
    if not (pid := os.fork()):
        time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
    line.close()
    deadline, ended = time.monotonic() + 10, False
    while not ended and time.monotonic() < deadline:
        try:
            list(other.receive())
        except EOFError:
            ended = True
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    other.close()
    assert ended


def test_a_line_that_does_not_get_through_is_left_out():
    here, there = socket.socketpair()
    line, other = Lifeline(here), Lifeline(there)
    for number in range(20000):
        line.send(number=number, filling="x" * 100)
    assert next(other.receive())["number"] == 0
    line.close()
    other.close()


def test_where_a_thread_is_names_the_users_own_line():
    is_here, may_go = threading.Event(), threading.Event()

    def in_the_users_code():
        is_here.set()
        may_go.wait(20)

    thread = threading.Thread(target=in_the_users_code)
    thread.start()
    is_here.wait(20)
    time.sleep(0.1)
    where, waits = whereabouts(thread.ident)
    may_go.set()
    thread.join()
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ in in_the_users_code", where)
    assert not waits
    assert whereabouts(thread.ident) == ("", False)


def test_one_process_starts_no_thread_and_has_nothing_to_cut(tmp_path):
    before = threading.active_count()
    trainer = trainer_for(tmp_path, Classifier(), pairs(12))
    seen = []
    trainer.add_callback(
        type("Looks", (), {"on_step_end": lambda self, trainer: seen.append(threading.active_count())})
    )
    trainer.train()
    assert set(seen) == {before}
    assert cut() is False


def test_torchruns_restarts_meet_at_a_place_of_their_own(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting_place() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert meeting_place() == meeting_place() == "trainer-core://"
