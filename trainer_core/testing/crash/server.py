"""The fork server: a process that has imported everything forks a child for each round, so that a round is short.

The child runs a function in an output folder, watched by the server where the kernel allows that, else by itself.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from trainer_core.testing.crash import calls, hooks, seccomp
from trainer_core.testing.crash.supervisor import Account, Plan, supervise, wait_for
from trainer_core.testing.crash.watched import ANNOUNCEMENTS

END_SECONDS: Final = 30.0
"""A server that takes longer to end is killed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a child does.

    Attributes:
        target: "module:function"; it is called with `folder`, `announce` and `options` and gives what JSON can hold.
        folder: its output folder.
        options: by name.
        plan: what is done to it.
    """

    target: str
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)


@dataclass
class Ended:
    """How a child ended.

    Attributes:
        account: of its calls.
        result: what its function gave; None where it did not come to that.
        error: traceback of what it raised, else "".
        said: what it wrote to its streams.
    """

    account: Account
    result: Any = None
    error: str = ""
    said: str = ""


class Server:
    """A fork server in a process of its own.

    Args:
        prepares: "module:function" that gives a context manager, in which the server works: it imports what children
            need.
        options: of that function, by name.
        watches: "seccomp", "python", or "" for the best that works here.

    Raises:
        RuntimeError: it cannot be prepared, or died; `run` raises it too.
    """

    def __init__(self, prepares: str = "", options: Mapping[str, Any] = {}, *, watches: str = "") -> None:
        mine, theirs = socket.socketpair()
        code = f"from {__name__} import serve; serve()"  # run as a module its classes would be those of __main__
        command = [sys.executable, "-c", code, str(theirs.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self.connection = Connection(mine.detach())
        self.watches, self.why_not, error = self._ask((prepares, dict(options), watches))
        if error:
            self.close()
            raise RuntimeError(f"fork server: it cannot be prepared.\n{error}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, job: Job) -> Ended:
        """Runs a job to its end."""
        ended: Ended = self._ask(job)
        return ended

    def close(self) -> None:
        """Ends the server, by a kill where it does not end by itself."""
        self.connection.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, what: object) -> Any:
        try:
            self.connection.send(what)
            return self.connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            code = f"got exit code {self.process.returncode}"
            raise RuntimeError(f"fork server: it died, {code}. Read what it wrote to stderr.") from error


def why_not_watched() -> str:
    """Says why this machine does not let a process be watched; "" where it does."""
    if calls.here() is None:
        return f"the numbers of the calls of a {os.uname().machine} are not known here"
    with TemporaryDirectory() as folder:
        try:
            ended = _run(Job(f"{__name__}:_trial", Path(folder), plan=Plan("shorten", 1, records=True)), "seccomp")
        except OSError as error:
            return str(error)
    return "" if ended.result == 1 else f"a call was not answered as it should be, {ended.error or ended.result}"


def _trial(folder: Path, announce: Callable[[str], None]) -> int:
    """Gives how many of two bytes a write takes."""
    descriptor = os.open(folder / "trial", os.O_WRONLY | os.O_CREAT)
    try:
        return os.write(descriptor, b"12")
    finally:
        os.close(descriptor)


def serve() -> None:
    """Prepares, says how children are watched, and runs jobs until the other side is gone."""
    connection = Connection(int(sys.argv[1]))
    prepares, options, watches = connection.recv()
    with ExitStack() as stack:
        why_not, error = "", ""
        try:
            stack.enter_context(_context(prepares, options))
            why_not = why_not_watched()
        except BaseException:
            error = traceback.format_exc()
        watches = watches or ("python" if why_not else "seccomp")
        gc.collect()
        gc.freeze()  # what is collected in a child would be copied
        connection.send((watches, why_not, error))
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            connection.send(_run(job, watches))


@contextmanager
def _context(prepares: str, options: Mapping[str, Any]) -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    if not prepares:
        yield
        return
    context: AbstractContextManager[None] = _function(prepares)(**options)
    with context:
        yield


def _run(job: Job, watches: str) -> Ended:
    names = ("result", ANNOUNCEMENTS, "said")
    files = {name: os.memfd_create(name) for name in names}
    mine, theirs = socket.socketpair()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        mine.close()
        _child(job, watches, files, theirs)
    theirs.close()
    try:
        with mine, _reaped(pid):
            account = _watch(pid, mine, job, watches)
        if watches != "seccomp":
            hooks.complete(account, job.plan, _content(files[ANNOUNCEMENTS]))
        return _ended(account, _content(files["result"]), _content(files["said"]).decode(errors="replace"))
    finally:
        for descriptor in files.values():
            os.close(descriptor)


@contextmanager
def _reaped(pid: int) -> Iterator[None]:
    """Leaves no process behind when watching it fails."""
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


def _watch(pid: int, mine: socket.socket, job: Job, watches: str) -> Account:
    if watches != "seccomp":
        return wait_for(pid, job.plan)
    listener, why_not = _receive_descriptor(mine)
    if listener is None:
        raise OSError(why_not)
    return supervise(pid, listener, job.folder, job.plan)


def _ended(account: Account, content: bytes, said: str) -> Ended:
    result, error = json.loads(content) if content else (None, "")
    if not content and account.ending == "ended":
        error = "the child died by itself"
    return Ended(account, result, error, said)


def _child(job: Job, watches: str, files: dict[str, int], theirs: socket.socket) -> None:
    """Runs the job; ends the process in any case."""
    try:
        for stream in (1, 2):
            os.dup2(files["said"], stream)
        if logging.lastResort is not None:  # warnings say that they are, also where no plugin sets a format
            logging.lastResort.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        announce = _announcing(files[ANNOUNCEMENTS])
        if watches == "seccomp":
            _ask_from_now_on(theirs)
        else:
            hooks.install(job.folder, job.plan, announce)
        answer: tuple[Any, str] = (None, "")
        try:
            answer = (_function(job.target)(job.folder, announce, **job.options), "")
        except BaseException:
            answer = (None, traceback.format_exc())
        os.write(files["result"], json.dumps(answer).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _announcing(descriptor: int) -> Callable[[str], None]:
    def announce(what: str) -> None:
        os.write(descriptor, what.encode() + b"\n")

    return announce


def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _ask_from_now_on(connection: socket.socket) -> None:
    """Hands the descriptor on which this process asks to the other side, or why there is none."""
    try:
        listener = seccomp.install()
    except OSError as error:
        connection.send(str(error).encode())
        raise
    rights = array.array("i", [listener])
    connection.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(listener)  # held here it would let this process wait for an answer when the other side is gone


def _receive_descriptor(connection: socket.socket) -> tuple[int | None, str]:
    """Gives a descriptor that was sent, or why there is none."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1024, 1)
    return (descriptors[0], "") if descriptors else (None, message.decode() or "the child died at once")
