"""What `compute_metrics` may be: functions, and metric objects of torchmetrics and evaluate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_evaluate import TIMES, Shaped, accuracy, evaluated, untimed
from tests.toys import Classifier, Rows, named_rows, table, trainer_for
from trainer_core import DataError, EvalPrediction, SettingsError
from trainer_core.metrics import metrics_of, problem_of

torchmetrics = pytest.importorskip("torchmetrics")
CPU = torch.device("cpu")


def collection(**options):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    options = {"num_classes": 3, **options}
    return torchmetrics.MetricCollection(
        {
            "accuracy": MulticlassAccuracy(average="micro", **options),
            "f1": MulticlassF1Score(average="macro", **options),
        }
    )


@pytest.fixture(scope="module")
def agreement(tmp_path_factory):
    """Gives a function that makes a metric of evaluate, which lives on the disk like a loaded one."""
    evaluate = pytest.importorskip("evaluate")
    datasets = pytest.importorskip("datasets")

    class Agreement(evaluate.Metric):
        def _info(self):
            column = datasets.Value("int64")
            features = datasets.Features({"predictions": column, "references": column})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            same = np.asarray(predictions) == np.asarray(references)
            return {"agreement": float(same.mean()), "rows": len(same)}

    return lambda **options: Agreement(cache_dir=str(tmp_path_factory.mktemp("evaluate")), **options)


def classes(logits, labels):
    return logits.argmax(-1)


# Objects of torchmetrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 11, 50])
def test_a_collection_gives_the_metrics_of_all_rows_for_any_batch_size(tmp_path, size):
    rows = named_rows(11)
    found = evaluated(tmp_path, Classifier(), rows, size=size, given={"compute_metrics": collection()})
    whole = collection()
    whole.update(Classifier()(rows.columns["x"])["logits"], rows.columns["labels"])
    expected = {f"eval_{name}": pytest.approx(value.item()) for name, value in whole.compute().items()}
    assert found.keys() == {"eval_loss", *expected}
    assert {name: found[name] for name in expected} == expected


def test_a_metric_without_a_name_has_that_of_its_class(tmp_path):
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=3)
    found = evaluated(tmp_path, Classifier(), named_rows(8), given={"compute_metrics": metric})
    plain = evaluated(tmp_path, Classifier(), named_rows(8), given={"compute_metrics": accuracy})
    assert found["eval_MulticlassAccuracy"] == pytest.approx(plain["eval_accuracy"])


def test_a_metric_begins_anew_with_each_evaluation_and_holds_nothing_after_it(tmp_path):
    metric = Counting()
    metric.update(torch.ones(100), torch.ones(100))
    given = {"compute_metrics": metric}
    trainer = trainer_for(tmp_path, Classifier(), given=given, per_device_eval_batch_size=3)
    for rows in (7, 4):
        assert untimed(trainer.evaluate(named_rows(rows)))["eval_Counting"] == rows
        assert (metric.rows, metric.batches) == (0, 0)


def test_a_metric_that_got_nothing_computes_nothing(tmp_path):
    given = {"compute_metrics": collection()}
    assert evaluated(tmp_path, Classifier(), Rows(x=table(5)[0]), given=given) == {}


class Counting(torchmetrics.Metric):
    """Counts rows."""

    def __init__(self):
        super().__init__()
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("batches", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions, labels):
        self.rows += len(labels)
        self.batches += 1

    def compute(self):
        return self.rows


def test_a_failed_evaluation_leaves_nothing_to_the_next(tmp_path):
    metric = collection()
    trainer = trainer_for(tmp_path, Classifier(), given={"compute_metrics": metric}, per_device_eval_batch_size=4)
    x, labels = table(8)
    labels[7] = 9
    with pytest.raises(IndexError, match="Target 9 is out of bounds"):
        trainer.evaluate(Rows(x=x, labels=labels))
    again = trainer.evaluate(named_rows(8))["eval_accuracy"]
    assert (
        again
        == evaluated(tmp_path, Classifier(), named_rows(8), given={"compute_metrics": collection()})["eval_accuracy"]
    )


def test_a_metric_of_several_values_becomes_a_list(tmp_path):
    metric = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3)
    found = evaluated(tmp_path, Classifier(), named_rows(9), given={"compute_metrics": metric})
    assert np.asarray(found["eval_MulticlassConfusionMatrix"]).shape == (3, 3)
    assert np.sum(found["eval_MulticlassConfusionMatrix"]) == 9


def test_labels_of_minus_100_are_the_metrics_to_ignore(tmp_path):
    x, labels = table(6, tokens=4)
    labels[:, 2:] = -100
    metric = torchmetrics.MetricCollection({"accuracy": PerToken(num_classes=3, average="micro", ignore_index=-100)})
    rows = Rows(x=x, labels=labels)
    found = evaluated(tmp_path, Classifier(), rows, given={"compute_metrics": metric})["eval_accuracy"]
    assert found == pytest.approx(
        evaluated(tmp_path, Classifier(), rows, given={"compute_metrics": accuracy})["eval_accuracy"]
    )


class PerToken(torchmetrics.classification.MulticlassAccuracy):
    """Takes logits as (batch, tokens, classes)."""

    def update(self, logits, labels):
        super().update(logits.flatten(0, 1), labels.flatten())


def test_a_metric_steers_the_best_model_of_a_run(tmp_path):
    trainer = trainer_for(
        tmp_path,
        Classifier(),
        named_rows(20),
        given={"compute_metrics": collection(), "eval_dataset": named_rows(9, seed=1)},
        eval_strategy="epoch",
        num_train_epochs=3,
        metric_for_best_model="accuracy",
    )
    trainer.train()
    values = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    assert len(values) == 3
    assert trainer.state.best_metric == max(values)


def test_a_metric_goes_to_the_device_of_the_batches():
    class Moved(nn.Module):
        def to(self, device):
            self.place = device
            return self

        def update(self, predictions, labels): ...
        def compute(self): ...
        def reset(self): ...

    metric = Moved()
    metrics_of(metric, torch.device("meta"), in_batches=False)
    assert metric.place == torch.device("meta")


def test_a_metric_takes_one_tensor_of_predictions(tmp_path):
    model = Shaped(lambda x: {"loss": x.mean(), "a": x, "b": x + 1})
    given = {"compute_metrics": torchmetrics.MeanSquaredError()}
    with pytest.raises(DataError) as caught:
        trainer_for(tmp_path, model, given=given).predict(Rows(x=torch.arange(3.0), labels=torch.arange(3.0)))
    assert str(caught.value) == (
        "compute_metrics: a metric object takes one tensor of predictions, got tuple of 2. Choose one in "
        "preprocess_logits_for_metrics, with ignore_keys or label_names, or pass a function."
    )
    assert caught.value.__notes__[0] == "raised in compute_metrics, in the evaluation at step 0"


def test_a_metric_and_those_in_it_do_not_add_up_ranks_that_all_have_everything():
    asked = []
    metric = torchmetrics.MetricCollection({"rows": Counting()})
    metric["rows"].distributed_available_fn = lambda: asked.append("are there others?")
    fed = metrics_of(metric, CPU, in_batches=False)
    fed.add(EvalPrediction(torch.ones(2), torch.ones(2)))
    assert (fed.result(), asked) == ({"rows": 2}, [])
    metric.update(torch.ones(3), torch.ones(3))
    assert (metric.compute(), asked) == ({"rows": 3}, ["are there others?"])


# Objects of evaluate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 11])
def test_a_module_of_evaluate_gets_each_batch_and_computes_at_the_end(tmp_path, agreement, size):
    given = {"compute_metrics": agreement(), "preprocess_logits_for_metrics": classes}
    trainer = trainer_for(tmp_path, Classifier(), given=given, per_device_eval_batch_size=size)
    plain = evaluated(tmp_path, Classifier(), named_rows(11), given={"compute_metrics": accuracy})
    for _ in range(2):
        found = untimed(trainer.evaluate(named_rows(11)))
        assert found.keys() == {"eval_loss", "eval_agreement", "eval_rows"}
        assert (found["eval_agreement"], found["eval_rows"]) == (pytest.approx(plain["eval_accuracy"]), 11)


def test_logits_for_a_module_that_wants_classes_are_its_own_error_with_a_note(tmp_path, agreement):
    with pytest.raises(Exception, match="predictions") as caught:
        evaluated(tmp_path, Classifier(), named_rows(4), given={"compute_metrics": agreement()})
    assert caught.value.__notes__ == ["raised in compute_metrics, in the evaluation at step 0"]


def test_a_module_that_is_loaded_for_several_processes_is_refused(agreement):
    assert problem_of(agreement(num_process=2, process_id=0, experiment_id="two")) == (
        "compute_metrics: is loaded for 2 processes, every rank gets all batches. Load it for one."
    )


# What is none -----------------------------------------------------------------------------------------------------


def test_a_function_is_taken_as_it_is():
    assert problem_of(accuracy) is None
    assert problem_of(collection()) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (3, "compute_metrics: must be a function or a metric, got int. Pass a function."),
        (torchmetrics.SumMetric, "compute_metrics: SumMetric is a class. Pass an instance of it."),
    ],
)
def test_what_is_no_metric_is_refused_when_the_trainer_is_made(tmp_path, wrong, told):
    with pytest.raises(SettingsError) as caught:
        trainer_for(tmp_path, Classifier(), given={"compute_metrics": wrong})
    assert caught.value.problems == [told]


def test_a_metric_may_be_set_later(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), given={"compute_metrics": accuracy})
    trainer.compute_metrics = collection()
    assert untimed(trainer.evaluate(named_rows(5))).keys() == {"eval_loss", "eval_accuracy", "eval_f1"}


def test_an_evaluation_tells_its_times_whatever_the_metric(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), given={"compute_metrics": collection()})
    metrics = trainer.evaluate(named_rows(5))
    assert {f"eval_{name}" for name in TIMES} <= metrics.keys()
