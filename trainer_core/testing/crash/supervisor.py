"""The supervisor: lets a watched process run, and kills it or fails a call at a place that a plan names."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass, field, replace
from errno import ENOSPC
from pathlib import Path
from typing import Literal

from trainer_core.testing.crash import seccomp
from trainer_core.testing.crash.calls import FLUSHES, WRITES, Call
from trainer_core.testing.crash.seccomp import Question
from trainer_core.testing.crash.watched import Watched

Action = Literal["nothing", "kill", "kill in the middle", "fail", "shorten"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a process, and what is noted of it.

    Attributes:
        action: kill it before a call or after half of the bytes of one, fail the call, or let it write half.
        at: the call, counted from 0; without meaning for "nothing".
        errno: of a call that fails.
        lasts: every later call that could fail for the same reason fails too.
        kill_after_seconds: kill it at this instant, whatever it does; None for never.
        patience_seconds: a process that takes longer hangs.
        records: note the bytes of writes.
        flushes: make the flushes it asks for; without, they are answered at once, which no kill can tell apart.
    """

    action: Action = "nothing"
    at: int = -1
    errno: int = 0
    lasts: bool = False
    kill_after_seconds: float | None = None
    patience_seconds: float = 120.0
    records: bool = False
    flushes: bool = False

    @property
    def limit(self) -> tuple[float, Literal["killed", "hung"]]:
        """After how many seconds the process is killed, and how it has ended then."""
        if self.kill_after_seconds is None:
            return self.patience_seconds, "hung"
        return self.kill_after_seconds, "killed"

    def at_call(self, number: int) -> Plan:
        """Gives the same for another call."""
        return replace(self, at=number)


@dataclass
class Account:
    """What became of a watched process.

    Attributes:
        calls: that concerned the folder, in their order, announcements among them.
        ending: how it ended.
        acted: the call at which the plan's action was done; None where it came to none.
    """

    calls: list[Call] = field(default_factory=list)
    ending: Literal["ended", "killed", "hung"] = "ended"
    acted: Call | None = None


def supervise(pid: int, listener: int, folder: Path, plan: Plan) -> Account:
    """Answers the calls of process `pid` by `plan` until it has ended, and gives the account."""
    watched = Watched(pid, folder, records=plan.records)
    try:
        return _Supervisor(watched, listener, plan).run()
    finally:
        watched.close()
        os.close(listener)


def wait_for(pid: int, plan: Plan) -> Account:
    """Waits for a process that nobody watches."""
    descriptor, account = os.pidfd_open(pid), Account()
    seconds, ending = plan.limit
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
            account.ending = ending
        status = os.waitpid(pid, 0)[1]
        if account.ending == "ended" and os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            account.ending = "killed"  # by itself, as a process does that watches itself
    finally:
        os.close(descriptor)
    return account


class _Supervisor:
    def __init__(self, watched: Watched, listener: int, plan: Plan) -> None:
        self.watched = watched
        self.listener = listener
        self.plan = plan
        self.account = Account()
        self.number = 0

    def run(self) -> Account:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self.watched.pidfd, select.POLLIN)
        seconds, ending = self.plan.limit
        deadline = time.monotonic() + seconds
        while True:
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                self.kill(ending)
            if self.watched.pidfd in ready or self.account.ending != "ended":
                os.waitpid(self.watched.pid, 0)
                return self.account
            if ready[self.listener] & select.POLLIN:
                question = seccomp.receive(self.listener)
                if question is not None:
                    self.judge(question)
            else:
                poll.unregister(self.listener)  # nobody is left who could ask

    def judge(self, question: Question) -> None:
        call = self.watched.call(question)
        if call is None:
            seccomp.answer(self.listener, question, goes_on=True)
            return
        self.account.calls.append(call)
        if call.name == "announce":
            seccomp.answer(self.listener, question, goes_on=True)
            return
        number, self.number = self.number, self.number + 1
        is_meant = number == self.plan.at or (
            number > self.plan.at >= 0 and self.plan.lasts and fails_too(call, self.plan.errno)
        )
        if self.plan.action == "nothing" or not is_meant:
            self.let(question, call)
        else:
            self.account.acted = self.account.acted or call
            self.act(question, call)

    def let(self, question: Question, call: Call) -> None:
        if call.name in FLUSHES and not self.plan.flushes:
            seccomp.answer(self.listener, question)
        else:
            seccomp.answer(self.listener, question, goes_on=True)

    def act(self, question: Question, call: Call) -> None:
        action = self.plan.action
        if action == "fail":
            seccomp.answer(self.listener, question, errno=self.plan.errno)
        elif action == "shorten" and call.can_split:
            seccomp.answer(self.listener, question, self.watched.write_half(question))
        elif action == "shorten":
            self.let(question, call)
        else:
            if action == "kill in the middle" and call.can_split:
                self.watched.write_half(question)
            self.kill("killed")

    def kill(self, ending: Literal["killed", "hung"]) -> None:
        os.kill(self.watched.pid, signal.SIGKILL)
        self.account.ending = ending


def fails_too(call: Call, errno: int) -> bool:
    """Tells whether a call fails for as long as the disk has the fault `errno`.

    A full one still takes what needs no space. One that is read-only takes nothing, but has nothing left to flush.
    """
    if errno == ENOSPC:
        return call.name in WRITES or call.name.startswith(("mkdir", "open", "creat", "link", "fallocate"))
    return call.name not in FLUSHES
