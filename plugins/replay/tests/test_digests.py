"""The plugin that records: what, when, and at which cost."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from trainer_core import SettingsError, Trainer, TrainingArguments
from trainer_core.testing import PluginConformance, tiny_dataset
from trainer_core_replay import Digests, Replay
from trainer_core_replay.digest import digest_of_tensors, digest_of_value, tensors_of


class TestDigests(PluginConformance):
    plugin_type = Digests


class TestReplay(PluginConformance):
    plugin_type = Replay


class Witness:
    """Notes what an update is made of, by itself."""

    def __init__(self):
        self.seen, self.lost = {}, []

    def on_step_begin(self, trainer):
        self.batch = digest_of_value(trainer.window)

    def on_substep_end(self, trainer):
        self.lost.append(len(trainer.window))

    def on_step_end(self, trainer):
        loss, norm = trainer.last_loss_and_norm
        whole, each = digest_of_tensors(tensors_of(trainer.model))
        told = {"batch": self.batch, "loss": float(loss), "grad_norm": float(norm)}
        self.seen[trainer.state.global_step] = told | {"parameters": whole, "tensors": each}


def test_a_record_holds_what_the_update_was(make, digests):
    witness = Witness()
    trainer = make(witness)
    begins = digest_of_tensors(tensors_of(trainer.model))
    trainer.train()
    (first, beginning), *records = digests(trainer.journal_path)
    assert (first, beginning) == (0, dict(zip(("parameters", "tensors"), begins, strict=True)))
    assert [step for step, _ in records] == [*range(1, 13)]
    for step, values in records:
        known = set(witness.seen[step]) if step % 2 == 0 else {"batch", "loss", "grad_norm"}
        samples = values.pop("samples")
        assert values == {name: value for name, value in witness.seen[step].items() if name in known}
        assert samples.startswith(f"epoch {(step - 1) // 6}, micro-batches {(step - 1) % 6 * 2} to ")
    assert trainer.window == ()


def test_the_rows_that_are_named_are_those_that_are_in_the_batches(make, digests):
    rows = [{**row, "input_ids": row["input_ids"] * 0 + number % 12} for number, row in enumerate(tiny_dataset(12))]
    seen = []

    class Look:
        def on_step_begin(self, trainer):
            seen.append([int(row[0]) for batch in trainer.window for row in batch["input_ids"]])

    trainer = make(Look(), given={"train_dataset": rows}, num_train_epochs=1)
    trainer.train()
    told = [values["samples"].partition("rows ")[2] for _, values in digests(trainer.journal_path)[1:]]
    assert told == [", ".join(map(str, row)) for row in seen]
    assert sorted(row for update in seen for row in update) == [*range(12)]


def test_many_rows_are_told_as_the_first_of_them_and_a_digest(make, digests):
    trainer = make(per_device_train_batch_size=8, gradient_accumulation_steps=1, num_train_epochs=1)
    trainer.train()
    rows = trainer.train_stream.rows_of(0, 0, 1)
    named = ", ".join(map(str, rows[:6]))
    expected = f"epoch 0, micro-batches 0 to 0: rows {named}, … (8, {digest_of_value(rows)})"
    assert digests(trainer.journal_path)[1][1]["samples"] == expected


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_dataset())


class OwnLoader(Trainer):
    def get_train_dataloader(self):
        return DataLoader(tiny_dataset(), batch_size=2, collate_fn=self.data_collator)


@pytest.mark.parametrize(("kind", "given"), [(Trainer, {"train_dataset": Stream()}), (OwnLoader, {})])
def test_of_a_stream_and_of_a_users_loader_the_place_is_told(make, digests, kind, given):
    trainer = make(kind=kind, given=given, max_steps=3)
    trainer.train()
    told = [values["samples"] for _, values in digests(trainer.journal_path)[1:]]
    assert told == [f"epoch 0, micro-batches {2 * step} to {2 * step + 1}" for step in range(3)]


@pytest.mark.parametrize(
    ("options", "steps", "with_parameters"),
    [
        ({"digest_steps": 5, "digest_parameter_steps": 100}, [0, 5, 10, 12], [0, 12]),
        ({"digest_steps": 5, "digest_parameter_steps": 3}, [0, 3, 5, 6, 9, 10, 12], [0, 3, 6, 9, 12]),
        ({"digest_steps": 100, "digest_parameter_steps": 100}, [0, 12], [0, 12]),
        ({"digest_steps": None}, [], []),
    ],
)
def test_updates_are_recorded_when_the_settings_say(make, digests, options, steps, with_parameters):
    trainer = make(**options)
    trainer.train()
    records = digests(trainer.journal_path)
    assert [step for step, _ in records] == steps
    assert [step for step, values in records if "parameters" in values] == with_parameters


@pytest.mark.parametrize("given", [{"digest_steps": 10}, {"digests": True}, {"digests": {}}])
def test_each_spelling_turns_it_on_with_its_defaults(given):
    section = TrainingArguments(**given).digests
    assert (section.steps, section.parameter_steps) == (10, 100)


def test_it_is_off_by_default_and_then_no_hook_of_an_update_is_there():
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(block_plugins=["console", "logging", "checkpointing"]))
    assert trainer.args.digests is None
    assert trainer.bus.hooks_of("replay") == ["replay_updates"]
    assert trainer.bus.step_hooks()[0] == (None,) * 5


@pytest.mark.parametrize("name", ["digest_steps", "digest_parameter_steps"])
def test_a_number_that_is_none_is_refused(name):
    with pytest.raises(SettingsError, match=f"{name}: must be at least 1, got 0"):
        TrainingArguments(**{"digest_steps": 1, name: 0})


def test_where_nothing_is_clipped_the_norm_is_that_of_the_gradients_as_they_stand(make, digests):
    norms = []

    class Norms:
        def on_pre_optimizer_step(self, trainer):
            gradients = [one.grad for one in trainer.model.parameters()]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    trainer = make(Norms(), max_grad_norm=0.0)
    trainer.train()
    assert [values["grad_norm"] for _, values in digests(trainer.journal_path)[1:]] == norms
    assert min(norms) > 0


def test_an_update_that_is_skipped_is_recorded_with_its_loss(make, digests):
    class Lost(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            loss = super().compute_loss(model, inputs)
            return loss * float("nan") if self.state.global_step == 2 else loss

    trainer = make(kind=Lost, nan_policy="skip")
    trainer.train()
    records = dict(digests(trainer.journal_path))
    assert [records[step]["loss"] == "nan" for step in (2, 3, 4)] == [False, True, False]
    assert records[4]["parameters"] != records[2]["parameters"]


def test_recording_changes_no_bit_of_the_run(make, tmp_path):
    runs = [make(output_dir=tmp_path / str(steps), digest_steps=steps) for steps in (None, 1)]
    for trainer in runs:
        trainer.train()
    (one, other) = (digest_of_tensors(tensors_of(trainer.model)) for trainer in runs)
    assert one == other


def test_the_plan_says_when(make):
    plan = make(digest_steps=5, digest_parameter_steps=6).plan()
    entries = {entry.by: list(entry.steps) for entry in plan.scheduled if entry.what == "digests"}
    assert entries == {"digest_steps": [5, 10], "digest_parameter_steps": [6, 12]}
