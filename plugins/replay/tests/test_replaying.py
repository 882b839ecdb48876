"""A replay is the same to the bit where nothing changed, and names what changed where something did."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest
import torch

from trainer_core import CheckpointError, PluginError, SettingsError, Signal, Trainer
from trainer_core.testing import tiny_dataset, tiny_model
from trainer_core_replay import Difference, ReplayError


@pytest.fixture
def run(make):
    """Gives the trainer of a run that is done."""
    trainer = make()
    trainer.train()
    return trainer


def quantities(report):
    """Gives how the updates compare: step to the quantities that were compared."""
    return {row.step: [name for name, is_same in row.same.items() if is_same] for row in report.rows}


INPUTS = ["samples", "batch", "loss", "grad_norm"]


@pytest.mark.parametrize(("start", "steps"), [(0, 12), (4, 6), (8, 4), (4, 1)])
def test_a_run_comes_out_again_to_the_bit(make, run, start, steps):
    report = make().replay(start, steps)
    assert (report.is_same, report.difference, report.notes) == (True, None, ())
    expected = {step: INPUTS + ["parameters"] * (step % 2 == 0) for step in range(start + 1, start + steps + 1)}
    assert quantities(report) == {start: ["parameters"], **expected}


@pytest.mark.parametrize("workers", [1, 2])
def test_so_it_does_with_workers_and_evaluations_between(make, workers):
    options = {"dataloader_num_workers": workers, "eval_strategy": "steps", "eval_steps": 3}
    make(**options).train()
    assert make(**options).replay(4, 8).is_same


@pytest.mark.parametrize(
    "options",
    [
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4},
        {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
        {"max_time": "1h"}, {"save_total_limit": 3}, {"resume_from_checkpoint": True}, {"bf16": True},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=str,
)  # fmt: skip
def test_so_it_does_under_other_settings(make, options):
    trainer = make(**options)
    trainer.train()
    assert trainer.state.global_step >= 6
    assert make(**options).replay(4, 8).is_same


class Noisy(Trainer):
    """Scales the loss from one update on."""

    factor, first = 1.0, 0

    def compute_loss(self, model, inputs, return_outputs=False):
        loss = super().compute_loss(model, inputs)
        return loss * self.factor if self.state.global_step + 1 >= self.first else loss


@pytest.mark.parametrize("first", [0, 5, 7, 8])
def test_a_loss_that_is_scaled_by_a_ten_millionth_is_named(make, run, first):
    class Scaled(Noisy):
        factor = 1 + 1e-6

    Scaled.first = first
    report = make(kind=Scaled).replay(4, 8)
    assert (report.difference.step, report.difference.quantity) == (max(first, 5), "loss")
    assert report.difference.found == pytest.approx(report.difference.recorded, rel=1e-5)
    assert report.difference.found != report.difference.recorded
    assert max(row.step for row in report.rows) == max(first, 5), "it ends there"


def test_a_gradient_that_is_scaled_by_a_ten_millionth_is_named(make, run):
    class Scaled(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            loss = super().compute_loss(model, inputs)
            return loss.detach() + (loss - loss.detach()) * (1 + 1e-6)

    difference = make(kind=Scaled).replay(4, 8).difference
    assert (difference.step, difference.quantity) == (5, "grad_norm")


def test_another_seed_is_named_as_other_samples(make, run):
    report = make(seed=43).replay(0, 12)
    rows = [text.partition("rows ")[2] for text in (report.difference.recorded, report.difference.found)]
    assert (report.difference.step, report.difference.quantity) == (1, "samples")
    assert rows[0] != rows[1]


def test_another_seed_is_refused_by_name_from_a_checkpoint(make, run):
    with pytest.raises(SettingsError, match=r"seed: .* the run of the checkpoint had 42, got 43"):
        make(seed=43).replay(4, 8)


def test_another_sample_is_named_as_another_batch(make, run):
    rows = tiny_dataset()
    changed = run.train_stream.rows_of(0, 12 - 2, 12)[0]  # of update 6
    rows[changed] = {**rows[changed], "input_ids": rows[changed]["input_ids"].flip(0) + 1}
    difference = make(given={"train_dataset": rows}).replay(4, 8).difference
    assert (difference.step, difference.quantity) == (6, "batch")


def test_a_changed_weight_is_named_before_any_update(make, run):
    class Tampering:
        def on_train_begin(self, trainer):
            with torch.no_grad():
                trainer.model.head.bias[1] += 1e-3

    report = make(Tampering()).replay(4, 8)
    assert report.difference.tensors == ("head.bias",)
    assert (report.difference.step, report.difference.quantity) == (4, "parameters")
    assert report.verdict.startswith("The first difference: before update 5, parameters of head.bias: recorded ")


def test_a_weight_that_is_changed_by_an_update_is_named_after_it(make, run):
    class Tampering:
        def on_optimizer_step(self, trainer):
            if trainer.state.global_step + 1 == 6:
                with torch.no_grad():
                    trainer.model.embedding.weight[0, 0] += 1e-3

    report = make(Tampering()).replay(4, 8)
    assert (report.difference.step, report.difference.quantity) == (6, "parameters")
    assert report.difference.tensors == ("embedding.weight",)


def test_another_model_is_told_as_such(make, run):
    model = torch.nn.Sequential()
    model.add_module("inner", tiny_model())
    model.forward = model.inner.forward
    model.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    report = make(given={"model": model}).replay(0, 12)
    assert (report.difference.step, report.difference.quantity, report.difference.tensors) == (0, "parameters", ())


def test_dropout_that_draws_otherwise_is_named_as_another_loss(make, run):
    class Drawing:
        def on_step_begin(self, trainer):
            if trainer.state.global_step == 6:
                torch.rand(1)

    difference = make(Drawing()).replay(4, 8).difference
    assert (difference.step, difference.quantity) == (7, "loss")


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_run_that_ends_before_is_a_difference(make, run, interrupt):
    class Stopping:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 6:
                trainer.request(Signal.STOP, by="stopping", why="enough", interrupt=interrupt)

    report = make(Stopping()).replay(4, 8)
    assert report.difference == Difference(7, "end", "it was done", "the run ends before it, stopping: enough")
    assert report.verdict == (
        "The first difference: update 7: it was done in the run; now the run ends before it, stopping: enough."
    )


def test_a_signal_ends_a_replay(make, run):
    class Killing:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        make(Killing()).replay(4, 8)


def test_nothing_in_the_folder_of_the_run_changes(make, run, tmp_path, snapshot):
    before = snapshot(tmp_path / "run")
    assert {"journal.jsonl", "checkpoint-4"} <= before.keys()
    make().replay(4, 8)
    make(seed=43).replay(0, 2)
    with pytest.raises(ReplayError):
        make().replay(5, 1)
    assert snapshot(tmp_path / "run") == before


def test_the_scratch_folder_is_gone_afterwards(make, run, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    used = []

    class Look:
        def on_train_begin(self, trainer):
            used.append(trainer.args.output_dir)

        def on_step_end(self, trainer):
            if len(used) == 2:
                raise OSError("broken")

    trainer = make(Look())
    trainer.replay(4, 8)
    with pytest.raises(OSError, match="broken"):
        trainer.replay(4, 8)
    assert [path.startswith(str(tmp_path / "scratch")) for path in used] == [True, True]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_trainer_is_as_it_was_after_a_replay(make, run):
    trainer = run
    optimizer = trainer.optimizer
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    told = (trainer.state.global_step, trainer.outcome, list(trainer.state.log_history), trainer.args)
    assert trainer.replay(4, 4).is_same
    assert (trainer.state.global_step, trainer.outcome, trainer.state.log_history, trainer.args) == told
    assert trainer.optimizer is optimizer
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())


def test_an_optimizer_that_was_passed_is_as_it_was(make):
    def parts():
        model = tiny_model()
        return {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None)}

    given = parts()
    trainer = make(given=given)
    trainer.train()
    optimizer = given["optimizers"][0]
    before = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    assert trainer.replay(4, 4).is_same
    after = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_trainer_with_model_init_replays_from_the_beginning_again_and_again(make):
    trainer = make(given={"model": None, "model_init": tiny_model})
    trainer.train()
    model = trainer.model
    assert [trainer.replay(start, 12).is_same for start in (0, 4, 0)] == [True, True, True]
    assert trainer.model is model


def test_without_model_init_a_trained_model_cannot_begin_anew(run):
    with pytest.raises(ReplayError, match="from_step: the model was trained since the run began, got 0 after 12 upd"):
        run.replay(0, 1)


# What does not happen in it ---------------------------------------------------------------------------------------


def test_nothing_is_saved_reported_or_ended(make, tmp_path, snapshot):
    options = {"report_to": "tensorboard", "early_stopping_patience": 1, "max_time": "1h", "eval_strategy": "steps"}
    options |= {"eval_steps": 2, "load_best_model_at_end": True, "logging_dir": str(tmp_path / "events")}
    make(**options).train()
    before, seen = snapshot(tmp_path), []

    class Look:
        def on_train_begin(self, trainer):
            seen.append(sorted(trainer.bus.members))

        def on_save(self):
            seen.append("saved")

    assert [path for path in before if path.startswith("events/")] != []
    assert make(Look(), **options).replay(0, 6).is_same
    assert seen == [["Look", "checkpointing", "replay", "replay_watch", "tuning"]]
    assert snapshot(tmp_path) == before


def test_callbacks_of_the_user_fire_with_the_state_of_the_checkpoint(make):
    class Counting:
        def __init__(self):
            self.seen = 0

        def on_step_end(self):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]
            self.loaded = state["seen"]

    make(Counting()).train()
    counting = Counting()
    make(counting).replay(4, 4)
    assert (counting.seen, counting.loaded) == (0, 0), "put back, as it was before"


# Histories --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_cut_and_went_on_is_replayed_across_the_cut(make, cut):
    make(cut(6)).train()
    make().train(resume_from_checkpoint=True)
    report = make().replay(4, 8)
    assert (report.is_same, report.notes) == (True, ())
    assert {row.step for row in report.rows} == {*range(4, 13)}


def lines_of(trainer):
    return trainer.journal_path.read_text(encoding="utf-8").splitlines()


def test_where_runs_disagree_the_last_one_counts_and_it_is_told(make, cut):
    class Scaled(Noisy):
        factor, first = 1.5, 6

    make(cut(7, saved=False), kind=Scaled).train()  # updates 6 and 7 are lost, and done again otherwise
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    runs = list(dict.fromkeys(json.loads(line)["run"] for line in lines_of(trainer)))
    report = make().replay(4, 8)
    assert report.is_same
    assert [note.partition(",")[0] for note in report.notes] == [
        f"update {step}: run {runs[0]} recorded other {name} than run {runs[1]}"
        for step, name in ((6, "loss"), (6, "grad_norm"), (6, "parameters"), (7, "loss"), (7, "grad_norm"))
    ]
    assert str(report).endswith("the latter is compared with.")


def test_half_a_line_and_foreign_records_are_passed_over(make, run):
    with run.journal_path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "digests", "step": 6, "ranks": 1, "values": 3}\n{"kind": "digests", "st')
    assert make().replay(4, 8).is_same


# What cannot be compared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "steps", "told"),
    [
        (5, 1, "from_step: {run} has no checkpoint of this update, got 5. Begin from one of 4, 8, 12, or from 0."),
        (12, 3, "{run}/journal.jsonl: holds no digests of updates 13 to 15, the last of which it does is 12. "
                "Begin from an earlier checkpoint."),
        (-1, 1, "from_step: must be a whole number from 0, got -1. Give a number of updates."),
        (True, 1, "from_step: must be a whole number from 0, got True. Give a number of updates."),
        (4, 0, "steps: must be a whole number from 1, got 0. Give a number of updates."),
        (4, 1.5, "steps: must be a whole number from 1, got 1.5. Give a number of updates."),
        ("4", 1, "from_step: must be a whole number from 0, got '4'. Give a number of updates."),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused_with_what_to_do(make, run, tmp_path, start, steps, told):
    with pytest.raises(ReplayError) as caught:
        make().replay(start, steps)
    assert str(caught.value) == told.format(run=tmp_path / "run")


def test_updates_between_two_that_were_recorded_are_refused(make, tmp_path):
    make(digest_steps=5, digest_parameter_steps=100).train()
    path = tmp_path / "run" / "journal.jsonl"
    with pytest.raises(ReplayError) as caught:
        make().replay(0, 3)
    assert str(caught.value) == (
        f"{path}: holds no digests of updates 1 to 3, the next of which it does is 5. Repeat at least 5."
    )


def test_a_run_without_digests_is_refused(make, tmp_path):
    make(digest_steps=None).train()
    with pytest.raises(ReplayError) as caught:
        make().replay(4, 8)
    assert str(caught.value) == (
        f"{tmp_path / 'run' / 'journal.jsonl'}: holds no digests of updates 5 to 12, nor of any other. "
        f"Train with digest_steps=10; what was not recorded cannot be compared."
    )


def test_a_folder_that_is_not_there_is_refused(make, tmp_path):
    with pytest.raises(ReplayError, match=r"output_dir: is no folder, got '.*nowhere'. Name that of a run."):
        make().replay(4, 8, output_dir=tmp_path / "nowhere")


def test_another_number_of_processes_is_refused(make, run):
    text = run.journal_path.read_text(encoding="utf-8")
    run.journal_path.write_text(text.replace('"ranks": 1', '"ranks": 4'), encoding="utf-8")
    with pytest.raises(ReplayError) as caught:
        make().replay(4, 8)
    assert str(caught.value) == (
        "ranks: update 5 was done by 4 process(es), got 1. Start the replay as the run was started: "
        "torchrun --nproc_per_node 4 -m trainer_core replay …"
    )


def test_a_replay_within_a_run_is_refused(make, run):
    class Asking:
        def on_step_end(self, trainer):
            trainer.replay(4, 1)

    with pytest.raises(PluginError, match="with_settings: a run is on"):
        make(Asking()).train()


def test_a_damaged_checkpoint_is_refused_by_its_reader(make, run, tmp_path):
    file = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        make().replay(4, 8)


def test_a_moved_folder_is_replayed_from_where_it_is(make, run, tmp_path):
    (tmp_path / "run").rename(tmp_path / "kept")
    assert make().replay(4, 8, output_dir=tmp_path / "kept").is_same
    assert not (tmp_path / "run").exists()


def test_a_replay_says_nothing_as_an_error(make, run, caplog):
    with caplog.at_level(logging.ERROR):
        make().replay(4, 8)
    assert caplog.records == []
