"""Callbacks that were written for transformers run unchanged, and hear what they would hear there."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import trainer_core
from trainer_core import Trainer, TrainingArguments


@pytest.fixture
def theirs():
    return pytest.importorskip("transformers")


class WithBestModel(TrainingArguments):
    """Has the option that transformers' callback reads and the blocked checkpointing plugin would bring."""

    load_best_model_at_end: bool = False


def test_transformers_printer_prints_our_rows(theirs, make_trainer, capsys):
    trainer = make_trainer(given={"callbacks": [theirs.PrinterCallback, theirs.ProgressCallback()]}, max_steps=2)
    trainer.log({"loss": 0.123456})
    trainer.train()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "{'loss': '0.1235', 'epoch': '0'}"
    assert list(trainer.bus.members) == ["PrinterCallback", "ProgressCallback"]


def test_transformers_early_stopping_stops_when_the_metric_no_longer_improves(theirs, make_trainer, make_args):
    scores = iter([0.5, 0.6, 0.6, 0.6, 0.9])
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy"}
    args = WithBestModel(**{**make_args().to_dict(), **options})

    class Scored(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            metrics = {"eval_accuracy": next(scores)}
            self.bus.tell("on_evaluate", trainer=self, metrics=metrics)
            return metrics

    stopping = theirs.EarlyStoppingCallback(early_stopping_patience=2)
    trainer = make_trainer(Scored, given={"args": args, "callbacks": [stopping]})
    trainer.train()
    assert (trainer.state.global_step, trainer.outcome) == (4, "stopped")
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.6, 2)
    assert trainer.stop_request.by == "EarlyStoppingCallback"


def test_a_control_of_transformers_is_understood(theirs, make_trainer):
    class Theirs(theirs.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            return theirs.TrainerControl(should_training_stop=state.global_step == 2)

    trainer = make_trainer(given={"callbacks": [Theirs()]})
    trainer.train()
    assert (trainer.state.global_step, trainer.stop_request.by) == (2, "Theirs")


class Rows(Dataset):
    def __init__(self, length):
        generator = torch.Generator().manual_seed(length)
        self.x = torch.randn(length, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": torch.tensor(index % 3)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


TWO_EPOCHS_OF_4_UPDATES = [
    "init_end@0",
    "train_begin@0",
    "epoch_begin@0",
    *["step_begin@0", "substep_end@0", "substep_end@0", "pre_optimizer_step@0", "optimizer_step@0"],
    *["step_end@1", "log@1"],
    *["step_begin@1", "substep_end@1", "substep_end@1", "pre_optimizer_step@1", "optimizer_step@1"],
    *["step_end@2", "log@2", "prediction_step@2", "prediction_step@2", "log@2", "evaluate@2"],
    *["step_begin@2", "substep_end@2", "substep_end@2", "pre_optimizer_step@2", "optimizer_step@2"],
    *["step_end@3", "log@3"],
    *["step_begin@3", "pre_optimizer_step@3", "optimizer_step@3"],
    *["step_end@4", "log@4", "prediction_step@4", "prediction_step@4", "log@4", "evaluate@4"],
    "save@4",
    "epoch_end@4",
    "epoch_begin@4",
    *["step_begin@4", "substep_end@4", "substep_end@4", "pre_optimizer_step@4", "optimizer_step@4"],
    *["step_end@5", "log@5"],
    *["step_begin@5", "substep_end@5", "substep_end@5", "pre_optimizer_step@5", "optimizer_step@5"],
    *["step_end@6", "log@6", "prediction_step@6", "prediction_step@6", "log@6", "evaluate@6"],
    *["step_begin@6", "substep_end@6", "substep_end@6", "pre_optimizer_step@6", "optimizer_step@6"],
    *["step_end@7", "log@7"],
    *["step_begin@7", "pre_optimizer_step@7", "optimizer_step@7"],
    *["step_end@8", "log@8", "prediction_step@8", "prediction_step@8", "log@8", "evaluate@8"],
    "save@8",
    "epoch_end@8",
    "log@8",
    "train_end@8",
]
"""10 micro-batches an epoch, 3 an update; a row each update, an evaluation every 2, a save every 4."""

OPTIONS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 4,
    "report_to": "none",
    "use_cpu": True,
}


@pytest.fixture
def noting(theirs):
    """Gives a callback of transformers that notes every event with the step."""
    events = [name for name in dir(theirs.TrainerCallback) if name.startswith("on_")]

    class Noting(theirs.TrainerCallback):
        def __init__(self):
            self.heard = []

    def note(event):
        def noted(self, args, state, control, **kwargs):
            self.heard.append(f"{event.removeprefix('on_')}@{state.global_step}")

        return noted

    for event in events:
        setattr(Noting, event, note(event))
    return Noting()


def test_events_fire_in_the_order_of_the_original(noting, tmp_path):
    args = TrainingArguments(tmp_path, **OPTIONS)
    Trainer(Net(), args, train_dataset=Rows(20), eval_dataset=Rows(4), callbacks=[noting]).train()
    assert noting.heard == TWO_EPOCHS_OF_4_UPDATES


@pytest.mark.filterwarnings("ignore")
def test_the_original_itself_fires_them_in_that_order(theirs, noting, tmp_path):
    args = theirs.TrainingArguments(str(tmp_path), disable_tqdm=True, **OPTIONS)
    data = {"train_dataset": Rows(20), "eval_dataset": Rows(4)}
    theirs.Trainer(Net(), args, callbacks=[noting], **data).train()
    assert noting.heard == TWO_EPOCHS_OF_4_UPDATES


def test_both_name_the_same_events(theirs):
    names = {name for name in dir(theirs.TrainerCallback) if name.startswith("on_")}
    assert set(trainer_core.callbacks.EVENTS) == names


def test_exportable_state_is_saved_and_restored_under_the_callbacks_own_name(theirs, tmp_path):
    def trained(resume, patience):
        args = TrainingArguments(
            tmp_path, max_steps=6, eval_strategy="steps", eval_steps=1, save_steps=3, metric_for_best_model="flat",
            greater_is_better=True, load_best_model_at_end=True, per_device_train_batch_size=2,
        )  # fmt: skip
        stopping = [theirs.EarlyStoppingCallback(patience), theirs.EarlyStoppingCallback(patience + 10)]
        trainer = Trainer(
            Net(), args, train_dataset=Rows(20), eval_dataset=Rows(4), callbacks=stopping,
            compute_metrics=lambda prediction: {"flat": 0.5},
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer, [one.early_stopping_patience_counter for one in stopping]

    whole, counters = trained(None, 8)
    assert (whole.state.global_step, counters) == (6, [5, 5])
    resumed, counters = trained(str(tmp_path / "checkpoint-3"), 4)
    assert (resumed.state.global_step, counters) == (5, [4, 4])
    assert resumed.stop_request.by == "EarlyStoppingCallback"


def test_transformers_tensorboard_callback_writes_our_rows(theirs, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers.integrations import TensorBoardCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    args = TrainingArguments(tmp_path / "run", **OPTIONS)
    trainer = Trainer(Net(), args, train_dataset=Rows(20), eval_dataset=Rows(4), callbacks=[TensorBoardCallback])
    trainer.train()
    written = EventAccumulator(str(tmp_path / "board")).Reload()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [event.value for event in written.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in written.Scalars("eval/loss")] == [2, 4, 6, 8]
