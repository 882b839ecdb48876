"""Other people's output goes through the display while it stands, and nowhere else."""

import io
import logging
import os
import sys

import pytest

from trainer_core.console.redirection import Redirection, Through


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def put(monkeypatch):
    """Gives a function that puts a terminal as standard output and a file as standard error, and gives both.

    Called in the test itself: pytest sets the streams anew after its fixtures.
    """

    def put():
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        return sys.stdout, sys.stderr

    return put


def test_whole_lines_are_shown_and_a_begun_one_when_it_is_flushed():
    shown = []
    through = Through(Terminal(), shown.append)
    through.write("one\ntwo\nthr")
    through.write("ee")
    assert shown == ["one\ntwo"]
    through.flush()
    assert shown == ["one\ntwo", "three"]


def test_after_its_release_it_is_the_stream():
    shown, terminal = [], Terminal()
    through = Through(terminal, shown.append)
    through.write("begun")
    through.release()
    through.write("after\n")
    assert (shown, terminal.getvalue()) == (["begun"], "after\n")


def test_a_forked_process_writes_into_the_stream(monkeypatch):
    shown, terminal = [], Terminal()
    through = Through(terminal, shown.append)
    monkeypatch.setattr(os, "getpid", lambda: -5)
    through.write("from a worker\n")
    assert (shown, terminal.getvalue()) == ([], "from a worker\n")


def test_it_answers_as_the_stream_does():
    through = Through(Terminal(), print)
    assert (through.encoding, through.isatty(), through.writable(), through.getvalue()) == ("utf-8", True, True, "")


def test_terminals_are_redirected_files_are_not_and_all_is_put_back(put):
    shown, streams = [], put()
    redirection = Redirection(shown.append)
    redirection.begin()
    print("to the terminal")
    print("to the file", file=sys.stderr)
    redirection.end()
    assert (sys.stdout, sys.stderr) == streams
    assert (shown, streams[0].getvalue(), streams[1].getvalue()) == (["to the terminal"], "", "to the file\n")


def test_log_handlers_that_write_to_the_terminal_follow_and_come_back(put):
    shown, streams = [], put()
    handler, elsewhere = logging.StreamHandler(streams[0]), logging.StreamHandler(streams[1])
    logger = logging.Logger("someone's")  # not in the tree: put there below
    logging.root.manager.loggerDict["someone's"] = logger
    logger.addHandler(handler)
    logger.addHandler(elsewhere)
    redirection = Redirection(shown.append)
    try:
        redirection.begin()
        logger.warning("careful")
        redirection.end()
    finally:
        del logging.root.manager.loggerDict["someone's"]
    assert shown == ["careful"]
    assert (handler.stream, elsewhere.stream) == streams
    assert streams[1].getvalue() == "careful\n"


def test_what_somebody_else_put_there_meanwhile_stays(put, monkeypatch):
    put()
    redirection = Redirection(print)
    redirection.begin()
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", other)
    redirection.end()
    assert sys.stdout is other
