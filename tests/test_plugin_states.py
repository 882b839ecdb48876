"""States of plugins and callbacks: of those that are gone, new, older and newer than what is installed."""

from __future__ import annotations

import pytest

from tests.toys import Classifier, pairs, trainer_for
from trainer_core import CheckpointError, PluginError, TrainerCallback, journal_records


class Counting:
    """A plugin that counts updates; its second release counts them by epoch."""

    name = "counting"

    def __init__(self):
        self.steps = 0

    def on_step_end(self, trainer):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class CountingAnew(Counting):
    """The third release: the state has another name for its number."""

    state_version = 3

    def state_dict(self):
        return {"updates": self.steps}

    def load_state_dict(self, state):
        self.steps = state["updates"]


class CountingOn(CountingAnew):
    """The same, with a way from all older ones."""

    def migrate_state_dict(self, state, version):
        return {"updates": state["steps"] if version == 1 else state["count"]}


class Callback(TrainerCallback):
    """A callback with a state."""

    def __init__(self, steps=0):
        self.steps = steps

    def on_step_end(self, args, state, control, **context):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class CallbackOn(Callback):
    """Its next release."""

    state_version = 2

    def migrate_state_dict(self, state, version):
        return {"steps": state["steps"] + 1000 * version}


class Loading:
    """Loads a state as a plugin that reads checkpoints does."""

    name = "loading"

    def __init__(self, state):
        self.state = state

    def read_checkpoint(self, trainer):
        trainer.load_state_dict(self.state)
        return trainer.args.output_dir


class Keeping:
    """Keeps the state of the run as it ends."""

    name = "keeping"

    def on_train_end(self, trainer):
        self.state = trainer.state_dict()


def run(folder, *plugins, state=None, **options):
    """Gives the trainer of a run and the state that it ends with; `state` is resumed from."""
    keeping = Keeping()
    members = [*(plugin for plugin in plugins if not isinstance(plugin, TrainerCallback)), keeping]
    callbacks = [plugin for plugin in plugins if isinstance(plugin, TrainerCallback)]
    if state is not None:
        members.append(Loading(state))
    given = {"plugins": members, "callbacks": callbacks}
    trainer = trainer_for(folder, Classifier(), pairs(8), given=given, **options)
    trainer.train(resume_from_checkpoint=state is not None)
    return trainer, keeping.state


def notes_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "trainer_core.plugin_states"]


def test_the_state_of_a_plugin_that_is_gone_is_kept_with_its_version_and_said_once(tmp_path, caplog):
    _, first = run(tmp_path / "a", CountingAnew())
    assert (first["plugins"], first["plugin_versions"]) == ({"counting": {"updates": 2}}, {"counting": 3})
    _, second = run(tmp_path / "b", state=first, num_train_epochs=2)
    assert (second["plugins"], second["plugin_versions"]) == ({"counting": {"updates": 2}}, {"counting": 3})
    assert notes_of(caplog) == [
        "plugin 'counting': is not there; its state is kept in each checkpoint for when it returns."
    ]
    (record,) = journal_records(tmp_path / "b" / "journal.jsonl", "plugin_states")
    assert (record["kept"], record["fresh"]) == (["counting"], [])
    back = CountingAnew()
    run(tmp_path / "c", back, state=second, num_train_epochs=3)
    assert back.steps == 4


def test_a_plugin_without_a_state_in_the_checkpoint_begins_anew_and_it_is_said(tmp_path, caplog):
    _, state = run(tmp_path / "a")
    new = Counting()
    run(tmp_path / "b", new, state=state, num_train_epochs=2)
    assert new.steps == 2
    assert notes_of(caplog) == ["plugin 'counting': the checkpoint holds no state of it; it begins anew."]
    (record,) = journal_records(tmp_path / "b" / "journal.jsonl", "plugin_states")
    assert (record["kept"], record["fresh"]) == ([], ["counting"])


def test_nothing_is_said_where_every_plugin_finds_its_state(tmp_path, caplog):
    _, state = run(tmp_path / "a", Counting())
    run(tmp_path / "b", Counting(), state=state)
    assert notes_of(caplog) == []
    assert list(journal_records(tmp_path / "b" / "journal.jsonl", "plugin_states")) == []


@pytest.mark.parametrize(("saved", "version"), [({"steps": 7}, 1), ({"count": 7}, 2), ({"updates": 7}, 3)])
def test_a_state_of_an_older_version_is_migrated_by_the_plugin(tmp_path, saved, version):
    _, state = run(tmp_path / "a")
    state |= {"plugins": {"counting": saved}, "plugin_versions": {"counting": version}}
    plugin = CountingOn()
    _, after = run(tmp_path / "b", plugin, state=state, num_train_epochs=2)
    assert plugin.steps == 9
    assert (after["plugins"], after["plugin_versions"]) == ({"counting": {"updates": 9}}, {"counting": 3})


def test_a_callback_migrates_too(tmp_path):
    _, state = run(tmp_path / "a", Callback())
    callback = type("Callback", (CallbackOn,), {})()
    _, after = run(tmp_path / "b", callback, state=state, num_train_epochs=2)
    assert callback.steps == 2 + 1000 + 2
    assert after["plugin_versions"] == {"Callback": 2}


def test_versions_that_plugins_do_not_read_are_refused_together_and_nothing_is_loaded(tmp_path):
    _, state = run(tmp_path / "a", Counting(), Callback())
    state["plugin_versions"] = {"Callback": 2}
    plugin, callback = CountingAnew(), Callback(steps=5)
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "b", plugin, callback, state=state, num_train_epochs=2)
    way = "or resume without the plugin, whose state is kept for when it returns."
    here = "tests.test_plugin_states"
    assert sorted(str(caught.value).splitlines()) == [
        f"plugin 'Callback': the checkpoint holds its state in version 2, and it reads version 1. "
        f"Upgrade {here}.Callback, {way}",
        f"plugin 'counting': the checkpoint holds its state in version 1, and it reads version 3 and migrates none. "
        f"Install the release of {here}.CountingAnew that saved it, {way}",
    ]
    assert (plugin.steps, callback.steps) == (0, 5)


def test_a_state_that_is_newer_than_an_installed_plugin_names_what_to_upgrade(tmp_path):
    options = {
        "block_plugins": ["checkpointing"],
        "console": None,
        "early_stopping_patience": 9,
        "eval_strategy": "epoch",
    }
    given = {"plugins": [keeping := Keeping()], "eval_dataset": pairs(8)}
    trainer_for(tmp_path / "a", Classifier(), pairs(8), given=given, **options).train()
    state = keeping.state | {"plugin_versions": {"early_stopping": 4}}
    given = {"plugins": [Loading(state)], "eval_dataset": pairs(8)}
    with pytest.raises(CheckpointError) as caught:
        trainer_for(tmp_path / "b", Classifier(), pairs(8), given=given, **options).train(resume_from_checkpoint=True)
    assert str(caught.value) == (
        "plugin 'early_stopping': the checkpoint holds its state in version 4, and it reads version 1. "
        "Upgrade trainer-core-early-stopping (here is 0.1.0), "
        "or resume without the plugin, whose state is kept for when it returns."
    )


@pytest.mark.parametrize("version", [0, True, "2", None, 1.5])
def test_a_version_that_is_no_count_is_told(tmp_path, version):
    plugin = Counting()
    plugin.state_version = version
    with pytest.raises(PluginError) as caught:
        run(tmp_path, plugin)
    assert str(caught.value) == (
        f"plugin 'counting': state_version must be a whole number of at least 1, got {version!r}. "
        f"Begin with 1, and add 1 whenever the state takes another form."
    )


def test_an_error_in_the_migration_names_plugin_and_method(tmp_path):
    _, state = run(tmp_path / "a")
    state |= {"plugins": {"counting": {}}, "plugin_versions": {"counting": 2}}
    with pytest.raises(KeyError) as caught:
        run(tmp_path / "b", CountingOn(), state=state)
    assert "raised in migrate_state_dict of plugin 'counting'" in caught.value.__notes__


@pytest.mark.parametrize("version", [0, "2", None, [1]])
def test_a_saved_version_that_is_no_count_is_refused(tmp_path, version):
    _, state = run(tmp_path / "a", Counting())
    state["plugin_versions"] = {"counting": version}
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "b", Counting(), state=state)
    assert str(caught.value) == (
        f"plugin 'counting': its state in the checkpoint has no version, got {version!r}. Use another checkpoint."
    )
