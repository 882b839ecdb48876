import logging
import sys

import pytest

from trainer_core import TrainingArguments
from trainer_core.testing import only
from trainer_core_logging import Logging, LoggingSettings
from trainer_core_logging.levels import Levels

OURS = logging.getLogger("trainer_core")


def test_levels_are_those_of_the_settings_during_a_run_and_put_back_after_it(train):
    seen = {}
    other = logging.getLogger("of.a.user")

    class Looking:
        def on_epoch_end(self):
            seen.update(ours=OURS.level, other=other.level)

    before = OURS.level, other.level
    train([Looking()], log_level="error", logging={"loggers": ["of.a.user"]})
    assert seen == {"ours": logging.ERROR, "other": logging.ERROR}
    assert (OURS.level, other.level) == before


@pytest.mark.parametrize(
    ("on_each_node", "is_local_zero", "is_main", "level"),
    [
        (True, True, True, logging.INFO),
        (True, True, False, logging.INFO),
        (True, False, False, logging.ERROR),
        (False, True, True, logging.INFO),
        (False, True, False, logging.ERROR),
    ],
)
def test_which_rank_is_a_main_one_follows_from_the_node_or_from_all(on_each_node, is_local_zero, is_main, level):
    class Ranks:
        world_size, rank = 4, 2

    class State:
        is_local_process_zero = is_local_zero

    class Trainer:
        ranks, state, is_main_rank = Ranks, State, is_main

    plugin = Logging(TrainingArguments(log_on_each_node=on_each_node, log_level_replica="error").logging)
    plugin._set_levels(Trainer)
    try:
        assert OURS.level == level
    finally:
        plugin._levels.put_back()


def test_a_constructor_changes_nothing():
    before = OURS.level
    with only("logging"):
        Logging(LoggingSettings(level="critical"))
    assert OURS.level == before


def test_messages_are_seen_on_stderr_when_nobody_listens(capsys, nobody_listens):
    nobody_listens()
    levels = Levels()
    levels.set(["trainer_core", "trainer_core.loop"], "info", prefix="[rank 1] ")
    logging.getLogger("trainer_core.loop").info("seen")
    logging.getLogger("trainer_core.loop").debug("not seen")
    levels.put_back()
    logging.getLogger("trainer_core.loop").info("no longer seen")
    assert capsys.readouterr().err == "[rank 1] INFO trainer_core.loop: seen\n"
    assert OURS.handlers == []


def test_a_handler_of_the_user_is_the_only_one(capsys, nobody_listens):
    nobody_listens()
    heard = []

    class Listening(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    handler, levels = Listening(), Levels()
    logging.root.addHandler(handler)
    levels.set(["trainer_core"], "info")
    OURS.info("once")
    levels.put_back()
    logging.root.removeHandler(handler)
    assert heard == ["once"]
    assert capsys.readouterr().err == ""


def test_a_handler_that_does_nothing_is_no_listener(capsys, nobody_listens):
    nobody_listens()
    handler, levels = logging.NullHandler(), Levels()
    OURS.addHandler(handler)
    levels.set(["trainer_core"], "info")
    OURS.info("seen")
    levels.put_back()
    assert OURS.handlers == [handler]
    OURS.removeHandler(handler)
    assert capsys.readouterr().err == "INFO trainer_core: seen\n"


def test_a_passive_level_touches_nothing(nobody_listens):
    nobody_listens()
    before = OURS.level
    levels = Levels()
    levels.set(["trainer_core"], "passive")
    assert (OURS.level, OURS.handlers) == (before, [])
    levels.put_back()
    assert OURS.level == before


def test_a_message_goes_to_what_stderr_is_when_it_is_written(monkeypatch, capsys, nobody_listens):
    nobody_listens()
    levels = Levels()
    levels.set(["trainer_core"], "info")
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", type("Display", (), {"write": lambda self, text: lines.append(text)})())
        OURS.info("through the display")
    levels.put_back()
    assert lines == ["INFO trainer_core: through the display\n"]
    assert capsys.readouterr().err == ""


def test_a_stderr_that_fails_ends_nothing(monkeypatch, nobody_listens):
    class Broken:
        def write(self, text):
            raise OSError("no longer there")

    nobody_listens()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    levels = Levels()
    levels.set(["trainer_core"], "info")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Broken())
        OURS.info("lost")
    levels.put_back()
    assert OURS.handlers == []


@pytest.mark.parametrize(("level", "expected"), [("info", 0), ("debug", 4)])
def test_rows_are_messages_at_debug_only(train, caplog, level, expected):
    train(log_level=level, logging_steps=1, max_steps=2)
    told = [record for record in caplog.records if record.name == "trainer_core.logging"]
    assert [record.levelname for record in told] == ["DEBUG"] * expected
