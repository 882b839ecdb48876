from __future__ import annotations

import copy
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.test_step import causal_rows, llama
from tests.toys import Classifier, Gradients, Rows, named_rows, pairs, table, trained, trainer_for, weights_of
from trainer_core import SettingsError, Trainer, TrainingArguments, modes
from trainer_core.data.reading import is_shared_out
from trainer_core.errors import DataError
from trainer_core.modes import refuse_unshared


def test_the_model_is_in_evaluation_mode_and_goes_back_module_by_module(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(dropout=0.5))
    trainer.model.train()
    trainer.model.layers[2].eval()
    with trainer.evaluation_model() as model:
        assert model is trainer.model
        assert not any(module.training for module in model.modules())
    assert trainer.model.training
    assert [layer.training for layer in trainer.model.layers] == [True, True, False, True]


def test_modes_go_back_when_an_evaluation_fails(tmp_path):
    trainer = trainer_for(tmp_path, Classifier())
    with pytest.raises(ValueError, match="no"), trainer.evaluation_model():
        raise ValueError("no")
    assert trainer.model.training


@pytest.mark.parametrize(("option", "dtype"), [("bf16_full_eval", torch.bfloat16), ("fp16_full_eval", torch.float16)])
def test_full_half_precision_evaluates_a_copy(tmp_path, option, dtype):
    trainer = trainer_for(tmp_path, Classifier(), **{option: True})
    before, rows = weights_of(trainer.model), named_rows(9)
    output = trainer.predict(rows)
    half = copy.deepcopy(trainer.model).to(dtype)
    with torch.no_grad():
        expected = half(rows.columns["x"][:8].to(dtype))["logits"].float().numpy()
    np.testing.assert_array_equal(output.predictions[:8].astype(np.float32), expected)
    assert torch.equal(weights_of(trainer.model), before)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(
        trainer_for(tmp_path, Classifier()).evaluate(rows)["eval_loss"], rel=0.02
    )


def test_full_half_precision_evaluates_a_transformers_model(tmp_path):
    trainer = trainer_for(tmp_path, llama(), bf16_full_eval=True)
    before = weights_of(trainer.model)
    assert trainer.predict(causal_rows()).predictions.shape == (6, 7, 50)
    assert torch.equal(weights_of(trainer.model), before)


def test_full_half_precision_acts_outside_training_only(tmp_path):
    dtypes = []

    class Looking(Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            dtypes.append(next(model.parameters()).dtype)
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    run = trained(
        tmp_path,
        Classifier(),
        pairs(8),
        kind=Looking,
        given={"eval_dataset": pairs(4)},
        eval_strategy="epoch",
        bf16_full_eval=True,
    )
    run.evaluate()
    assert dtypes == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("options", "dtype"), [({}, None), ({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16)]
)
def test_the_type_of_autocast_follows_from_the_settings(tmp_path, options, dtype):
    assert modes.autocast_type(trainer_for(tmp_path, Classifier(), **options).args) is dtype


class Answering(nn.Linear):
    def forward(self, x, start_positions=None, end_positions=None):
        return super().forward(x)


class Named(nn.Linear):
    def forward(self, x, label=None, labels_mask=None):
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        (Classifier(), {}, ("labels",)),
        (Classifier(), {"label_names": ["target"]}, ("target",)),
        (Answering(2, 2), {}, ("start_positions", "end_positions")),
        (Named(2, 2), {}, ("label", "labels_mask")),
        (nn.Linear(2, 2), {}, ("labels",)),
    ],
)
def test_labels_are_what_the_settings_or_forward_call_so(tmp_path, model, options, names):
    assert trainer_for(tmp_path, model, **options).label_names == names


X, Y = table(2)


@pytest.mark.parametrize(
    ("inputs", "main"),
    [({"labels": Y, "input_ids": X}, X), ({"x": X, "labels": Y}, X), ((X, Y), X), ([X], X), (X, X)],
)
def test_the_main_input_is_input_ids_or_the_first(inputs, main):
    assert modes.main_input(Classifier(), inputs) is main


def test_a_model_names_its_main_input():
    model = Classifier()
    model.main_input_name = "pixels"
    assert modes.main_input(model, {"x": Y, "pixels": X}) is X


def test_a_transformers_model_names_what_predictions_leave_out(tmp_path):
    args = TrainingArguments(tmp_path)
    of_llama = modes.keys_to_ignore(Trainer(model=llama(), args=args))
    assert of_llama in (["cache"], ["past_key_values"])  # since transformers 5.24, and before
    assert modes.keys_to_ignore(Trainer(model=Classifier(), args=args)) == []


def test_an_evaluation_needs_a_dataset(tmp_path):
    with pytest.raises(SettingsError, match="eval_dataset: is needed to evaluate"):
        trainer_for(tmp_path, Classifier()).evaluate()


def test_no_datasets_by_name_are_no_dataset(tmp_path):
    given = {"eval_dataset": {}}
    with pytest.raises(SettingsError, match="eval_dataset: is needed to evaluate"):
        trainer_for(tmp_path, Classifier(), given=given).evaluate()
    with pytest.raises(SettingsError, match="eval_dataset: has no rows, got length 0"):
        trainer_for(tmp_path, Classifier(), pairs(4), given=given, eval_strategy="epoch").train()


def test_an_overridden_loader_needs_no_dataset(tmp_path):
    class Own(Trainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return torch.utils.data.DataLoader(pairs(5), batch_size=2)

    assert trainer_for(tmp_path, Classifier(), kind=Own).evaluate()["eval_loss"] > 0


def test_no_label_is_dropped_as_an_unused_column(tmp_path):
    rows = Rows(x=X, labels=Y, more=torch.ones(2))
    run = trainer_for(tmp_path, Classifier())
    assert run.predict(rows).label_ids.tolist() == Y.tolist()


# What a run puts back ---------------------------------------------------------------------------------------------


def test_full_determinism_holds_during_a_run_and_is_put_back(tmp_path):
    seen = []

    class Looking(Gradients):
        def on_step_end(self):
            seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    trained(tmp_path, Classifier(), pairs(4), given={"plugins": [Looking()]}, full_determinism=True)
    assert seen == [(True, ":16:8")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before


def test_a_run_leaves_the_callers_random_states(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(5)
    np.random.seed(5)
    run = trained(tmp_path, Classifier(dropout=0.5), pairs(8))
    run.evaluate(pairs(4))
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == expected


DATA = TensorDataset(torch.arange(8.0)[:, None])


@pytest.mark.parametrize(
    ("loader", "is_shared"),
    [
        (DataLoader(DATA, batch_size=2), False),
        (DataLoader(DATA, batch_size=2, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)), True),
        ([torch.zeros(2)], False),
    ],
)
def test_a_loader_that_every_rank_would_read_whole_is_told_from_one_that_is_shared_out(loader, is_shared):
    assert is_shared_out(loader) is is_shared


def test_a_users_loader_that_is_not_shared_out_is_refused_on_several_ranks_only():
    loader = DataLoader(DATA, batch_size=2)
    refuse_unshared(SimpleNamespace(ranks=SimpleNamespace(world_size=1)), loader, "get_train_dataloader")
    with pytest.raises(DataError) as caught:
        refuse_unshared(SimpleNamespace(ranks=SimpleNamespace(world_size=2)), loader, "get_train_dataloader")
    assert str(caught.value) == (
        "get_train_dataloader: gives a loader that each of 2 ranks would read whole, got DataLoader. "
        "Give it a torch DistributedSampler, or return self.accelerator.prepare(loader)."
    )
