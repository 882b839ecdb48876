from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.toys import Classifier, Regressor, pairs, table, trained, trainer_for, weights_of
from trainer_core import NonFiniteLossError, Trainer
from trainer_core.guard import Guard, can_judge_on_device
from trainer_core.ranks import Ranks
from trainer_core.step import Stepper

CONSTANT = {"lr_scheduler_type": "constant", "max_grad_norm": None}


class Alone(Ranks):
    def __init__(self):
        self.world_size, self.device = 1, torch.device("cpu")


@pytest.fixture
def judged_on_device(monkeypatch):
    """Training leaves the verdict on the device, as on an accelerator; torch's fused CPU kernels honour it."""
    original = Stepper.__init__

    def init(self, trainer, meter):
        original(self, trainer, meter)
        self.reads_now = False
        self.guard = Guard(self.args.nan_policy, self.optimizer, self.ranks, reads_now=False)

    monkeypatch.setattr(Stepper, "__init__", init)


def poisoned(bad_rows=(9,)):
    """20 rows, 4 a batch; `bad_rows` make the loss of their batch NaN."""
    x, labels = table(20)
    x[list(bad_rows), 0] = torch.nan
    return TensorDataset(x, labels)


class Remembering:
    def __init__(self):
        self.weights = []

    def on_step_end(self, trainer):
        self.weights.append(weights_of(trainer.model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_touched(tmp_path, value, optim):
    x, _ = table(20)
    y = x[:, :2].sin()
    y[9, 0] = value
    plugin = Remembering()
    trainer = trainer_for(tmp_path, Regressor(), TensorDataset(x, y), optim=optim, given={"plugins": [plugin]})
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert str(caught.value) == (
        f"step 3: the loss is not finite, got {value}. The weights are still those of step 2. Lower learning_rate, "
        "look at the batch of that step, or set nan_policy to 'skip' or 'ignore'."
    )
    assert torch.equal(weights_of(trainer.model), plugin.weights[-1])
    assert len(plugin.weights) == 2
    assert trainer.outcome == "failed"
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_loss_that_is_no_number_in_one_micro_batch_spoils_the_update(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), poisoned(), gradient_accumulation_steps=2)
    with pytest.raises(NonFiniteLossError, match=r"^step 2: "):
        trainer.train()


def test_a_skipped_update_leaves_no_trace(tmp_path, caplog):
    x, labels = table(20)
    clean = TensorDataset(torch.cat([x[:8], x[12:]]), torch.cat([labels[:8], labels[12:]]))
    with caplog.at_level(logging.WARNING, logger="trainer_core.guard"):
        run = trained(tmp_path, Classifier(), poisoned(), nan_policy="skip", **CONSTANT)
    other = trained(tmp_path, Classifier(), clean, **CONSTANT)
    assert torch.equal(weights_of(run.model), weights_of(other.model))
    assert run.state.global_step == 5
    assert run.train_metrics["train_loss"] == other.train_metrics["train_loss"]
    assert [record.getMessage() for record in caplog.records] == [
        "step 3: the loss is nan; the update is skipped (nan_policy='skip')."
    ]
    assert run.running.loop.stepper.guard.num_skipped == 1


def test_ignoring_trains_on(tmp_path):
    run = trained(tmp_path, Classifier(), poisoned(), nan_policy="ignore")
    assert weights_of(run.model).isnan().any()
    assert math.isnan(run.train_metrics["train_loss"])


def test_a_skipped_update_ends_what_the_gradient_scaler_began(tmp_path):
    run = trained(tmp_path, Classifier(), poisoned((5, 9)), nan_policy="skip", fp16=True, **CONSTANT)
    assert run.state.global_step == 5
    assert weights_of(run.model).isfinite().all()


def test_a_training_step_of_the_users_is_judged_too(tmp_path):
    class Stepping(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            return super().training_step(model, inputs, num_items_in_batch)

    with pytest.raises(NonFiniteLossError, match=r"^step 3: "):
        trained(tmp_path, Classifier(), poisoned(), kind=Stepping)


# The verdict that stays on the device -----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD])
def test_fused_kernels_of_torch_honour_found_inf_on_the_cpu(build):
    model = nn.Linear(2, 2)
    optimizer, before = build(model.parameters(), lr=0.1, fused=True), weights_of(model)
    for verdict, kept in ((1.0, True), (0.0, False)):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.found_inf = torch.tensor(verdict)
        optimizer.step()
        assert torch.equal(weights_of(model), before) is kept


@pytest.mark.usefixtures("judged_on_device")
def test_on_a_device_a_stop_is_told_late_and_the_weights_are_those_before_the_bad_step(tmp_path):
    good = trained(tmp_path, Classifier(), pairs(20), max_steps=2, **CONSTANT)
    trainer = trainer_for(tmp_path, Classifier(), poisoned(), **CONSTANT)
    with pytest.raises(NonFiniteLossError, match=r"^step 3: .* The weights are still those of step 2"):
        trainer.train()
    assert trainer.state.global_step == 5
    assert torch.equal(weights_of(trainer.model), weights_of(good.model))
    assert not hasattr(trainer.optimizer, "found_inf")


@pytest.mark.usefixtures("judged_on_device")
@pytest.mark.parametrize("clip", [None, 0.01])
def test_on_a_device_skipped_updates_leave_no_trace(tmp_path, clip, caplog):
    x, labels = table(20)
    clean = TensorDataset(torch.cat([x[:4], x[12:]]), torch.cat([labels[:4], labels[12:]]))
    options = {"lr_scheduler_type": "constant", "max_grad_norm": clip}
    with caplog.at_level(logging.WARNING, logger="trainer_core.guard"):
        run = trained(tmp_path, Classifier(), poisoned((5, 9)), nan_policy="skip", **options)
    other = trained(tmp_path, Classifier(), clean, **options)
    assert torch.equal(weights_of(run.model), weights_of(other.model))
    assert run.train_metrics["train_loss"] == pytest.approx(other.train_metrics["train_loss"])
    assert [record.getMessage() for record in caplog.records] == [
        "step 2: the loss or its gradient is NaN or infinity; the update is skipped, as are 1 after it "
        "(nan_policy='skip')."
    ]
    assert run.running.loop.stepper.guard.num_skipped == 2


@pytest.mark.usefixtures("judged_on_device")
def test_on_a_device_a_bad_loss_is_told_before_an_evaluation(tmp_path):
    trainer = trainer_for(
        tmp_path,
        Classifier(),
        poisoned(),
        given={"eval_dataset": pairs(4)},
        eval_strategy="steps",
        eval_steps=4,
    )
    with pytest.raises(NonFiniteLossError, match=r"^step 3: ") as caught:
        trainer.train()
    assert "raised in phase EVAL, after step 4" in caught.value.__notes__


@pytest.mark.usefixtures("judged_on_device")
def test_on_a_device_a_clean_run_is_the_same_to_the_bit(tmp_path, monkeypatch):
    run = trained(tmp_path, Classifier(), pairs(20), gradient_accumulation_steps=2)
    monkeypatch.undo()
    other = trained(tmp_path, Classifier(), pairs(20), gradient_accumulation_steps=2)
    assert torch.equal(weights_of(run.model), weights_of(other.model))
    assert run.train_metrics["train_loss"] == pytest.approx(other.train_metrics["train_loss"])


@pytest.mark.parametrize(
    ("device", "fused", "can"), [("cpu", True, False), ("cuda", True, True), ("cuda", False, False)]
)
def test_only_a_fused_optimizer_on_an_accelerator_judges_by_itself(device, fused, can):
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), fused=fused)
    assert can_judge_on_device(optimizer, torch.device(device)) is can


def test_settling_reads_a_verdict_once():
    model = copy.deepcopy(Classifier())
    guard = Guard("stop", torch.optim.AdamW(model.parameters(), fused=True), Alone(), reads_now=False)
    assert guard.passes(torch.tensor(torch.nan), None, 7)
    with pytest.raises(
        NonFiniteLossError, match=r"^step 7: the loss or its gradient is not finite, got NaN or infinity\."
    ):
        guard.settle()
    guard.settle()


class Cliff(torch.nn.Module):
    """Its loss is 0 at weight 0, and its gradient there is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": self.weight.abs().sqrt().sum()}


def test_a_finite_loss_with_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_are_touched(tmp_path):
    trainer = trainer_for(tmp_path, Cliff(), pairs(8), max_grad_norm=1.0)
    with pytest.raises(NonFiniteLossError, match=r"^step 1: the norm of the gradient is not finite, got nan\. "):
        trainer.train()
    assert trainer.model.weight.item() == 0.0


def test_updates_whose_gradient_is_not_finite_are_skipped_by_policy(tmp_path):
    trainer = trainer_for(tmp_path, Cliff(), pairs(8), max_grad_norm=1.0, nan_policy="skip")
    trainer.train()
    assert trainer.model.weight.item() == 0.0
    assert trainer.state.global_step == trainer.state.max_steps
