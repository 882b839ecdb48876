from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.toys import Classifier, Stream, named_rows, trainer_for, weights_of
from trainer_core import SettingsError, Trainer
from trainer_core.rehearsal import metric_names


def trainer_with(folder, eval_dataset, compute_metrics=None, kind=Trainer, **options):
    given = {"eval_dataset": eval_dataset, "compute_metrics": compute_metrics, **options.pop("given", {})}
    return trainer_for(folder, Classifier(dropout=0.5), named_rows(8), kind=kind, given=given, **options)


def accuracy(prediction):
    return {"accuracy": 1.0}


TIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def test_a_rehearsal_tells_the_metrics(tmp_path):
    assert metric_names(trainer_with(tmp_path, named_rows(9), accuracy)) == {"eval_loss", "eval_accuracy"} | TIMES


def test_each_dataset_of_a_mapping_is_rehearsed(tmp_path):
    names = metric_names(trainer_with(tmp_path, {"near": named_rows(2), "far": named_rows(2)}, accuracy))
    assert {"eval_near_loss", "eval_far_accuracy"} <= names


def test_only_the_first_rows_are_evaluated(tmp_path):
    seen = []
    trainer = trainer_with(
        tmp_path, named_rows(50), lambda p: seen.append(len(p.label_ids)) or {}, per_device_eval_batch_size=3
    )
    metric_names(trainer)
    assert seen == [3]


class OwnEvaluate(Trainer):
    def evaluate(self, *args, **kwargs):
        return {"eval_own": 1.0}


class OwnLoader(Trainer):
    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(eval_dataset)


class OwnLoop(Trainer):
    def evaluation_loop(self, *args, **kwargs):
        return super().evaluation_loop(*args, **kwargs)


@pytest.mark.parametrize("kind", [OwnEvaluate, OwnLoader, OwnLoop])
def test_an_evaluation_of_the_users_own_is_not_rehearsed(tmp_path, kind):
    assert metric_names(trainer_with(tmp_path, named_rows(4), kind=kind)) is None


def failing(prediction):
    raise ValueError("too few rows")


def test_a_metric_function_that_fails_on_few_rows_tells_nothing(tmp_path):
    assert metric_names(trainer_with(tmp_path, named_rows(4), failing)) is None


def test_a_stream_is_not_rehearsed(tmp_path):
    assert metric_names(trainer_with(tmp_path, Stream(named_rows(4)))) is None


class Listening:
    def __init__(self):
        self.heard = []

    def on_prediction_step(self):
        self.heard.append("on_prediction_step")

    def on_evaluate(self):
        self.heard.append("on_evaluate")

    def on_log(self):
        self.heard.append("on_log")


def test_a_rehearsal_leaves_no_trace(tmp_path):
    plugin = Listening()
    trainer = trainer_with(tmp_path, named_rows(4), accuracy, given={"plugins": [plugin]})
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    weights = weights_of(trainer.model)
    metric_names(trainer)
    assert plugin.heard == []
    assert trainer.state.log_history == []
    assert torch.equal(weights_of(trainer.model), weights)
    assert trainer.model.training
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_a_best_metric_that_no_evaluation_gives_is_refused_before_training(tmp_path):
    trainer = trainer_with(
        tmp_path,
        named_rows(4),
        accuracy,
        eval_strategy="epoch",
        metric_for_best_model="acuracy",
        greater_is_better=True,
    )
    with pytest.raises(
        SettingsError, match=r"no evaluation gives this metric, got 'acuracy'\. Did you mean 'accuracy'"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_metric_of_one_of_several_datasets_may_decide(tmp_path):
    trainer = trainer_with(
        tmp_path,
        {"near": named_rows(4), "far": named_rows(4)},
        accuracy,
        eval_strategy="epoch",
        metric_for_best_model="far_accuracy",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.best_metric == 1.0


class Accumulating:
    """Keeps what it saw, batch by batch, and gives the number of rows at the end."""

    def __init__(self):
        self.rows = 0

    def __call__(self, prediction, compute_result=True):
        self.rows += len(prediction.predictions)
        if compute_result:
            rows, self.rows = self.rows, 0
            if rows < 4:
                raise ValueError("too few rows")
            return {"rows": rows}
        return {}


def test_an_object_with_a_memory_remembers_nothing_of_a_rehearsal(tmp_path):
    trainer = trainer_with(
        tmp_path,
        named_rows(6),
        Accumulating(),
        batch_eval_metrics=True,
        per_device_eval_batch_size=2,
        eval_strategy="epoch",
        metric_for_best_model="rows",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.best_metric == 6


def test_a_function_that_takes_batches_is_not_rehearsed(tmp_path):
    seen = []

    def in_batches(prediction, compute_result):
        seen.append(compute_result)
        return {"batches": len(seen)}

    trainer = trainer_with(tmp_path, named_rows(4), in_batches, batch_eval_metrics=True)
    assert metric_names(trainer) is None
    assert seen == []


def test_metrics_are_rehearsed_once_for_a_plan_and_the_run(tmp_path):
    seen = []

    def counting(prediction):
        seen.append(len(prediction.predictions))
        return {"accuracy": 1.0}

    options = {"eval_strategy": "epoch", "metric_for_best_model": "accuracy", "num_train_epochs": 1}
    trainer = trainer_with(tmp_path, named_rows(4), counting, **options)
    trainer.plan()
    rehearsed = len(seen)
    trainer.train()
    assert (rehearsed, len(seen)) == (1, 2)


def test_a_method_is_rehearsed_without_copying_what_it_belongs_to(tmp_path):
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def accuracy(self, prediction):
            return {"accuracy": 1.0}

    assert "eval_accuracy" in metric_names(trainer_with(tmp_path, named_rows(4), Uncopyable().accuracy))
