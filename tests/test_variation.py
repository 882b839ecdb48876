"""A trainer with other settings for a while is a new one in all but its identity, and then what it was."""

import logging

import pytest
import torch

from trainer_core import PluginError, Trainer, TrainerCallback, TrainingArguments, with_settings
from trainer_core.settings.discovery import installed_names
from trainer_core.testing import TinyModel, tiny_dataset, tiny_model

BLOCKED = sorted(installed_names() - {"console"})


@pytest.fixture
def trainer_with(tmp_path):
    def made(kind=Trainer, **given):
        torch.set_num_threads(1)
        options = {"max_steps": 3, "block_plugins": BLOCKED, "console": None} | given.pop("options", {})
        given = {"model_init": TinyModel, "train_dataset": tiny_dataset()} | given
        return kind(args=TrainingArguments(tmp_path / "own", **options), **given)

    return made


class Counter:
    """A plugin with a memory."""

    def __init__(self):
        self.steps, self.beginnings = 0, []

    def on_init_end(self, trainer):
        self.beginnings.append(trainer.args.output_dir)

    def on_step_end(self, trainer):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_a_run_in_it_is_that_of_a_trainer_made_so(trainer_with, tmp_path):
    trainer = trainer_with()
    args = trainer.args.replace(max_steps=5, seed=7, learning_rate=0.1, output_dir=tmp_path / "other")
    trainer.train()
    with with_settings(trainer, args) as same:
        assert same is trainer
        within = trainer.train()
        weights = trainer.model.state_dict()
        optimizer = trainer.optimizer.state_dict()
    alone = Trainer(model_init=TinyModel, args=args, train_dataset=tiny_dataset())
    assert alone.train()[:2] == within[:2]
    assert alone.optimizer.state_dict()["param_groups"] == optimizer["param_groups"]
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_every_attribute_is_what_it_was(fails, trainer_with, tmp_path):
    trainer = trainer_with()
    trainer.train()
    before = dict(vars(trainer))
    members = dict(trainer.bus.members)
    try:
        with with_settings(trainer, trainer.args.replace(max_steps=2, output_dir=tmp_path / "other")):
            trainer.train()
            assert trainer.state.global_step == 2
            trainer.mine = 1
            if fails:
                raise KeyError("of the user")
    except KeyError:
        assert fails
    assert vars(trainer) == before
    assert trainer.bus.members == members
    assert trainer.state.global_step == 3


def test_settings_that_cannot_be_used_leave_it_as_it_was(trainer_with):
    class Nosy:
        def on_init_end(self, trainer):
            if trainer.args.max_steps == 2:
                raise RuntimeError("not these")

    trainer = trainer_with(plugins=[Nosy()])
    before = dict(vars(trainer))
    with pytest.raises(RuntimeError, match="not these"), with_settings(trainer, trainer.args.replace(max_steps=2)):
        pass
    assert vars(trainer) == before


def test_installed_plugins_are_made_anew_from_the_new_settings(trainer_with):
    trainer = trainer_with(options={"console": {}})
    old = trainer.bus.members["console"].plugin
    with with_settings(trainer, trainer.args.replace(max_steps=2)):
        assert list(trainer.bus.members) == ["console"]
        assert trainer.bus.members["console"].plugin is not old
        assert type(trainer.bus.members["console"].plugin) is type(old)
    with with_settings(trainer, trainer.args.replace(console=None)):
        assert list(trainer.bus.members) == []
    assert trainer.bus.members["console"].plugin is old


def test_settings_turn_plugins_on(trainer_with):
    trainer = trainer_with()
    with with_settings(trainer, trainer.args.replace(console=True)):
        assert list(trainer.bus.members) == ["console"]


def test_an_installed_plugin_that_the_user_took_off_stays_off(trainer_with):
    trainer = trainer_with(options={"console": {}})
    trainer.remove_callback("console")
    with with_settings(trainer, trainer.args.replace(max_steps=2)):
        assert list(trainer.bus.members) == []


def test_what_the_user_passed_is_there_under_its_name_and_hears_of_the_beginning(trainer_with, tmp_path):
    counter, callback = Counter(), TrainerCallback()
    trainer = trainer_with(plugins=[counter], callbacks=[callback])
    late = Counter()
    trainer.add_callback(late)
    extra = Counter()
    extra.name = "extra"
    with with_settings(trainer, trainer.args.replace(output_dir=tmp_path / "other"), [extra]):
        found = {name: member.plugin for name, member in trainer.bus.members.items()}
        assert list(found) == ["Counter", "TrainerCallback", "Counter-2", "extra"]
        assert (found["Counter"], found["TrainerCallback"].callback) == (counter, callback)
        assert (found["Counter-2"], found["extra"]) == (late, extra)
    assert counter.beginnings == [str(tmp_path / "own"), str(tmp_path / "other")]
    assert list(trainer.bus.members) == ["Counter", "TrainerCallback", "Counter-2"]


def test_a_plugin_with_a_state_has_the_one_that_it_had(trainer_with):
    counter = Counter()
    trainer = trainer_with(plugins=[counter])
    trainer.train()
    with with_settings(trainer, trainer.args.replace(max_steps=2)):
        trainer.train()
        assert counter.steps == 5
    assert counter.steps == 3


def test_a_plugin_without_a_state_outside_a_run_is_told_and_keeps_that_of_the_run(trainer_with, caplog):
    class Late(Counter):
        def state_dict(self):
            return {"steps": self.unknown}

    late = Late()
    trainer = trainer_with(plugins=[late])
    with caplog.at_level(logging.WARNING), with_settings(trainer, trainer.args.replace(max_steps=2)):
        trainer.train()
    assert late.steps == 2
    assert [record.getMessage() for record in caplog.records if record.name == "trainer_core.variation"] == [
        "plugin 'Late': has no state outside a run (AttributeError(\"'Late' object has no attribute 'unknown'\")), "
        "so it keeps that of the run."
    ]


def test_what_a_subclass_has_is_there_and_what_was_made_at_first_use_is_made_anew(trainer_with):
    class Own(Trainer):
        def __init__(self, **given):
            self.factor, self.calls = 2.0, 0
            super().__init__(**given)

        def compute_loss(self, model, inputs, return_outputs=False):
            self.calls += 1
            loss = self.factor * model(**inputs)["loss"]
            return (loss, {}) if return_outputs else loss

    trainer = trainer_with(kind=Own)
    trainer.train()
    names, accelerator = trainer.label_names, trainer.accelerator
    with with_settings(trainer, trainer.args.replace(max_steps=2, label_names=["other"])):
        assert (trainer.label_names, names) == (("other",), ("labels",))
        assert trainer.accelerator is not accelerator
        assert trainer.calls == 3
    assert (trainer.label_names, trainer.calls) == (("labels",), 3)
    assert trainer.accelerator is accelerator


def test_the_users_optimizer_goes_on_and_one_of_a_run_does_not(trainer_with):
    model = tiny_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = trainer_with(model=model, model_init=None, optimizers=(own, None))
    trainer.train()
    with with_settings(trainer, trainer.args.replace(max_steps=2)):
        assert (trainer.optimizer, trainer.lr_scheduler) == (own, None)
        trainer.train()
    trainer = trainer_with()
    trainer.train()
    with with_settings(trainer, trainer.args.replace(max_steps=2)):
        assert (trainer.optimizer, trainer.lr_scheduler) == (None, None)


def test_it_is_refused_while_a_run_is_on(trainer_with):
    class Early:
        def on_step_end(self, trainer):
            with with_settings(trainer, trainer.args):
                pass

    with pytest.raises(PluginError, match=r"with_settings: a run is on, whose settings cannot change."):
        trainer_with(plugins=[Early()]).train()
