"""One fork server for each worker, the runs that it starts, and the figures at the end."""

from __future__ import annotations

import os
import time

import pytest

from trainer_core.testing.crash.rounds import Figures, Rounds
from trainer_core.testing.crash.server import Server

TARGET = "tests.crash.runs:run"
HEAD = ("points", "rounds", "kills", "faults", "starts", "failures", "seconds")
NAME = "crash figures"


@pytest.fixture(scope="session")
def more():
    """How many rounds beyond those of the short form."""
    return int(os.environ.get("CRASH_ROUNDS", "0"))


@pytest.fixture(scope="session")
def server():
    with Server("tests.crash.runs:prepared", watches=os.environ.get("CRASH_WATCH", "")) as server:
        yield server


@pytest.fixture(scope="session")
def made():
    """Rounds by what they were made of: the run that nobody kills is made once."""
    return {}


@pytest.fixture
def rounds(server, made, tmp_path_factory, request):
    """Gives a function that makes the rounds of a run; what it does is counted."""
    figures, started = Figures(), time.monotonic()

    def make(name, target=TARGET, **options):
        key = repr((name, target, sorted(options.items())))
        if key not in made:
            place = tmp_path_factory.mktemp("crash")
            made[key] = Rounds(server, name, place, figures, target=target, options={"name": name, **options})
        made[key].figures = figures if target == TARGET else Figures()
        return made[key]

    yield make
    seconds = time.monotonic() - started
    counted = [figures.points, figures.rounds, figures.kills, figures.faults, figures.starts, figures.failures]
    request.node.user_properties.append((NAME, [*counted, seconds]))


@pytest.fixture
def sees_all_calls(server):
    """For what needs the supervisor."""
    if server.watches != "seccomp":
        pytest.skip(f"calls of a process are not watched here: {server.why_not or 'CRASH_WATCH says so'}")


def pytest_runtest_logreport(report):
    for name, counted in report.user_properties if report.when == "teardown" else ():
        if name == NAME:
            kind = report.nodeid.partition("::")[0].rpartition("/")[2]
            TABLE.setdefault(kind, []).append(counted)


TABLE: dict[str, list[list[float]]] = {}


def pytest_terminal_summary(terminalreporter):
    if not TABLE:
        return
    rows = {kind: [sum(column) for column in zip(*lines, strict=True)] for kind, lines in sorted(TABLE.items())}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    terminalreporter.section("crashes")
    terminalreporter.line(f"{'':22}" + "".join(f"{name:>10}" for name in HEAD))
    for kind, row in rows.items():
        terminalreporter.line(f"{kind:22}" + "".join(f"{number:>10.0f}" for number in row))
