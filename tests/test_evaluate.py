from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import Subset, TensorDataset

from tests.toys import Classifier, Regressor, Rows, Stream, named_rows, pairs, table, trainer_for, weights_of
from trainer_core import DataError, EvalPrediction, SettingsError, Trainer
from trainer_core.metrics import plain

IN_FOLDER = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIMES = ("runtime", "samples_per_second", "steps_per_second")


def evaluated(folder, model, dataset, *, size=3, given=None, **options):
    trainer = trainer_for(folder, model, given=given, per_device_eval_batch_size=size, **options)
    return untimed(trainer.evaluate(dataset))


def untimed(metrics):
    return {name: value for name, value in metrics.items() if not name.endswith((*TIMES, "epoch"))}


def accuracy(prediction):
    predictions, labels = prediction
    counted = labels != -100
    return {"accuracy": (predictions.argmax(-1) == labels)[counted].mean(), "rows": len(labels)}


# Loss and metrics -------------------------------------------------------------------------------------------------


@IN_FOLDER
@given(rows=st.integers(1, 14), size=st.integers(1, 15), seed=st.integers(0, 99), rate=st.floats(0, 0.9))
@pytest.mark.parametrize("tokens", [None, 3])
def test_any_batch_size_gives_the_loss_and_metrics_of_one_batch(tmp_path, tokens, rows, size, seed, rate):
    x, labels = table(rows, tokens=tokens, seed=seed, dtype=torch.float64)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < rate] = -100
    labels.reshape(-1)[-1] = 2
    model = Classifier().double()
    metrics = evaluated(tmp_path, model, Rows(x=x, labels=labels), size=size, given={"compute_metrics": accuracy})
    outputs = model(x, labels)
    expected = accuracy(EvalPrediction(outputs["logits"].detach().numpy(), labels.numpy()))
    assert metrics == {
        "eval_loss": pytest.approx(outputs["loss"].item(), rel=1e-12),
        "eval_accuracy": pytest.approx(expected["accuracy"]),
        "eval_rows": rows,
    }


def test_a_batch_without_targets_counts_nothing(tmp_path):
    x, labels = table(9)
    labels[3:6] = -100
    model = Classifier()
    expected = model(x, labels)["loss"].item()
    assert evaluated(tmp_path, model, TensorDataset(x, labels)) == {"eval_loss": pytest.approx(expected)}


def test_without_any_target_there_is_no_loss(tmp_path):
    x, labels = table(6)
    labels[:] = -100
    assert evaluated(tmp_path, Classifier(), TensorDataset(x, labels)) == {}


def test_without_labels_there_is_no_loss_and_no_metric(tmp_path):
    given = {"compute_metrics": accuracy}
    assert evaluated(tmp_path, Classifier(), Rows(x=table(6)[0]), given=given) == {}


@pytest.mark.parametrize("size", [1, 4, 9])
def test_float_labels_weigh_by_samples(tmp_path, size):
    x, _ = table(9, dtype=torch.float64)
    model, y = Regressor().double(), x[:, :2].sin()
    metrics = evaluated(tmp_path, model, TensorDataset(x, y), size=size)
    assert metrics == {"eval_loss": pytest.approx(model(x, y)[0].item(), rel=1e-12)}


class Summing(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["x"])
        loss = functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def summed(outputs, labels, num_items_in_batch):
    return functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("options", [{"kind": Summing}, {"given": {"compute_loss_func": summed}}])
@pytest.mark.parametrize("size", [2, 7])
def test_losses_that_divide_by_the_count_are_means_in_evaluation(tmp_path, options, size):
    x, labels = table(7, dtype=torch.float64)
    labels[2:5] = -100
    model, rows = Classifier().double(), Rows(x=x, labels=labels)
    expected = {"eval_loss": pytest.approx(model(x, labels)["loss"].item(), rel=1e-12)}
    assert evaluated(tmp_path, model, rows, size=size, **options) == expected


def test_evaluation_under_autocast_is_the_models_under_autocast(tmp_path):
    x, labels = table(8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = Classifier()(x, labels)["loss"].item()
    assert evaluated(tmp_path, Classifier(), TensorDataset(x, labels), size=8, bf16=True) == {"eval_loss": expected}


def test_evaluation_leaves_the_run_as_it_was(tmp_path):
    def run(**options):
        trainer = trainer_for(
            tmp_path, Classifier(dropout=0.5), pairs(20), given={"eval_dataset": pairs(7, seed=1)}, **options
        )
        trainer.train()
        return trainer

    with_evaluations = run(eval_strategy="steps", eval_steps=1, eval_on_start=True)
    assert torch.equal(weights_of(with_evaluations.model), weights_of(run().model))
    assert with_evaluations.model.training


# Prediction -------------------------------------------------------------------------------------------------------


COMBINATIONS = list(
    itertools.product([False, True], [False, True], ["random", "group_by_length", "sequential"], [1, 3])
)


@pytest.mark.parametrize(("workers", "drop_last", "sampling", "accumulation"), COMBINATIONS)
def test_predict_gives_every_row_once_in_order(tmp_path, workers, drop_last, sampling, accumulation):
    model = nn.Identity()
    model.weight = nn.Parameter(torch.ones(1))
    model.forward = lambda input_ids: input_ids * 1.0
    trainer = trainer_for(
        tmp_path,
        model,
        dataloader_num_workers=2 * workers,
        dataloader_drop_last=drop_last,
        train_sampling_strategy=sampling,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=4,
    )
    output = trainer.predict(Rows(input_ids=torch.arange(22)))
    assert output.predictions.tolist() == list(range(22))
    assert output.label_ids is None
    assert output.metrics["test_samples_per_second"] > 0


@pytest.mark.parametrize("size", [1, 4, 5, 99])
def test_predict_gives_what_the_model_gives(tmp_path, size):
    x, labels = table(11)
    given = {"compute_metrics": accuracy}
    trainer = trainer_for(tmp_path, Classifier(), given=given, per_device_eval_batch_size=size)
    output = trainer.predict(Rows(x=x, labels=labels))
    np.testing.assert_allclose(output.predictions, trainer.model(x)["logits"].detach().numpy(), rtol=1e-6, atol=1e-6)
    assert output.label_ids.tolist() == labels.tolist()
    assert untimed(output.metrics).keys() == {"test_loss", "test_accuracy", "test_rows"}
    assert trainer.state.log_history == []


def test_a_subset_and_a_stream_give_the_rows_of_the_dataset(tmp_path):
    rows = named_rows(11)
    trainer = trainer_for(tmp_path, Classifier(), per_device_eval_batch_size=4)
    whole = trainer.predict(rows).predictions
    np.testing.assert_array_equal(trainer.predict(Stream(rows)).predictions, whole)
    picked = trainer.predict(Subset(rows, [7, 2, 5])).predictions
    np.testing.assert_allclose(picked, whole[[7, 2, 5]], rtol=1e-6, atol=1e-6)


class Shaped(nn.Module):
    """Gives outputs in the form that `build` makes of x."""

    def __init__(self, build):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.build = build

    def forward(self, x, labels=None):
        return self.build(x)


def predicted(folder, build, x, **options):
    return trainer_for(folder, Shaped(build), per_device_eval_batch_size=2, **options).predict(Rows(x=x)).predictions


def test_outputs_keep_their_structure(tmp_path):
    x = torch.arange(5.0)
    found = predicted(tmp_path, lambda x: {"a": x, "b": (x, {"c": x + 1, "d": [x]}), "none": None}, x)
    assert isinstance(found, tuple)
    assert found[0].tolist() == [0, 1, 2, 3, 4]
    assert found[1][1]["c"].tolist() == [1, 2, 3, 4, 5]
    assert found[1][1]["d"][0].tolist() == [0, 1, 2, 3, 4]


def rich(x):
    """Every kind of output at once; each row's own whatever batch it is in."""
    ragged = torch.full((len(x), int(x.max()) + 1), -100.0)
    for row, value in zip(ragged, x.tolist(), strict=True):
        row[: int(value) + 1] = value
    return {"a": x * 2, "text": [f"row {v:g}" for v in x], "in": (ragged, None, {"deep": x[:, None]}), "no": None}


@IN_FOLDER
@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=9), size=st.integers(1, 10), batches=st.integers(1, 3))
def test_any_batch_size_gives_the_same_predictions(tmp_path, values, size, batches):
    x = torch.tensor(values, dtype=torch.float64)
    rows = Rows(x=x)
    options = {"include_for_metrics": ["inputs"], "eval_accumulation_steps": batches}
    trainer = trainer_for(tmp_path, Shaped(rich), per_device_eval_batch_size=size, **options)
    doubled, texts, (ragged, deep) = trainer.predict(rows).predictions
    whole = rich(x)
    assert doubled.tolist() == whole["a"].tolist()
    assert texts.tolist() == whole["text"]
    assert ragged.tolist() == whole["in"][0].tolist()
    assert deep["deep"].tolist() == whole["in"][2]["deep"].tolist()


def test_a_metric_gets_texts_of_the_model_and_of_the_data(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append([prediction.predictions[1].tolist(), prediction.inputs.tolist()])
        return {"same": float((prediction.predictions[1] == prediction.inputs).mean())}

    model = Shaped(lambda x: None)
    model.forward = lambda words, labels: {"loss": labels.mean(), "a": labels, "b": list(words)}
    rows = Rows(words=["a", "b", "c"], labels=torch.ones(3))
    given = {"compute_metrics": metrics}
    found = evaluated(tmp_path, model, rows, size=2, given=given, include_for_metrics=["inputs"])
    assert found == {"eval_loss": 1.0, "eval_same": 1.0}
    assert seen == [[["a", "b", "c"], ["a", "b", "c"]]]


def test_labels_that_come_and_go_are_refused(tmp_path):
    class Halfway(Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return loss, logits, labels if len(labels) == 3 else None

    with pytest.raises(DataError, match=r"evaluation: 2 of 3 batches give label_ids. Give them with every batch or"):
        evaluated(tmp_path, Classifier(), named_rows(8), kind=Halfway, given={"compute_metrics": accuracy})


def test_a_tuple_with_an_absent_output_is_collected(tmp_path):
    found = predicted(tmp_path, lambda x: (x, None, x + 1), torch.arange(5.0))
    assert [part.tolist() for part in found] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_ragged_outputs_are_padded(tmp_path):
    found = predicted(tmp_path, lambda x: torch.ones(len(x), int(x.max())), torch.tensor([1, 1, 3, 2, 2]))
    assert found.tolist() == [[1, -100, -100]] * 2 + [[1, 1, 1]] * 2 + [[1, 1, -100]]


def test_ignored_keys_are_left_out(tmp_path):
    trainer = trainer_for(tmp_path, Shaped(lambda x: {"a": x, "b": x, "c": x + 1}))
    output = trainer.predict(Rows(x=torch.arange(3.0)), ignore_keys=["a", "b"])
    assert output.predictions.tolist() == [1, 2, 3]


def test_outputs_that_no_one_can_collect_are_refused(tmp_path):
    with pytest.raises(DataError, match="evaluation: cannot collect an output of type str"):
        predicted(tmp_path, lambda x: {"a": x, "b": "text"}, torch.arange(3.0))


class FirstOfAll(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        outputs = model(inputs["x"])
        loss = ((outputs[0] - inputs["labels"]) ** 2).mean()
        return (loss, outputs) if return_outputs else loss


def test_the_prediction_for_a_last_single_row_is_not_taken_for_a_loss(tmp_path):
    model = Shaped(lambda x: (x[:, None], x + 1))
    trainer = trainer_for(tmp_path, model, kind=FirstOfAll, per_device_eval_batch_size=2)
    output = trainer.predict(Rows(x=torch.arange(5.0), labels=torch.zeros(5)))
    assert [part.tolist() for part in output.predictions] == [[[0], [1], [2], [3], [4]], [1, 2, 3, 4, 5]]


# eval_do_concat_batches -------------------------------------------------------------------------------------------


def test_unjoined_predictions_are_a_list_of_batches(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"batches": len(prediction.predictions)}

    trainer = trainer_for(
        tmp_path,
        Classifier(),
        given={"compute_metrics": metrics},
        per_device_eval_batch_size=4,
        eval_do_concat_batches=False,
        include_for_metrics=["inputs", "loss"],
    )
    rows = named_rows(10)
    output = trainer.predict(rows)
    assert [batch.shape for batch in output.predictions] == [(4, 3), (4, 3), (2, 3)]
    assert [batch.tolist() for batch in output.label_ids] == [part.tolist() for part in rows.columns["labels"].split(4)]
    assert [batch.shape for batch in seen[0].inputs] == [(4, 4), (4, 4), (2, 4)]
    assert [batch.shape for batch in seen[0].losses] == [(4,), (4,), (2,)]
    assert output.metrics["test_batches"] == 3


def test_unjoined_batches_keep_their_structure_and_their_own_shapes(tmp_path):
    x = torch.tensor([1, 1, 3, 2, 2])
    options = {"eval_do_concat_batches": False}
    found = predicted(tmp_path, lambda x: {"a": torch.ones(len(x), int(x.max())), "b": x}, x, **options)
    assert [[part.shape for part in batch] for batch in found] == [[(2, 1), (2,)], [(2, 3), (2,)], [(1, 2), (1,)]]


# What compute_metrics gets and gives ------------------------------------------------------------------------------


class Streaming:
    """Counts right answers batch by batch."""

    def __init__(self):
        self.calls = []
        self.right = self.rows = 0

    def __call__(self, prediction, compute_result):
        self.calls.append((len(prediction.label_ids), compute_result))
        self.right += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
        self.rows += len(prediction.label_ids)
        if not compute_result:
            return None
        result = {"accuracy": self.right / self.rows}
        self.right = self.rows = 0
        return result


def test_a_streaming_metric_gets_each_batch_and_gives_its_result_at_the_last(tmp_path):
    metric, rows = Streaming(), named_rows(10)
    trainer = trainer_for(
        tmp_path,
        Classifier(),
        given={"compute_metrics": metric},
        per_device_eval_batch_size=4,
        batch_eval_metrics=True,
    )
    plain_trainer = trainer_for(tmp_path, Classifier(), given={"compute_metrics": accuracy})
    assert trainer.evaluate(rows)["eval_accuracy"] == plain_trainer.evaluate(rows)["eval_accuracy"]
    assert metric.calls == [(4, False), (4, False), (2, True)]


def test_predict_gives_the_predictions_though_its_metric_takes_batches(tmp_path):
    given, rows = {"compute_metrics": Streaming()}, named_rows(10)
    found = trainer_for(tmp_path, Classifier(), given=given, batch_eval_metrics=True).predict(rows)
    expected = trainer_for(tmp_path, Classifier(), given={"compute_metrics": accuracy}).predict(rows)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_array_equal(found.label_ids, expected.label_ids)
    assert found.metrics["test_accuracy"] == expected.metrics["test_accuracy"]


def test_an_evaluation_in_batches_keeps_no_predictions(tmp_path):
    given = {"compute_metrics": Streaming()}
    trainer = trainer_for(tmp_path, Classifier(), given=given, batch_eval_metrics=True)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(named_rows(10)), "Evaluation")
    assert (output.predictions, output.label_ids, output.num_samples) == (None, None, 10)


def test_a_metric_that_takes_batches_is_not_asked_where_there_are_no_labels(tmp_path):
    metric = Streaming()
    given = {"compute_metrics": metric}
    assert evaluated(tmp_path, Classifier(), Rows(x=table(6)[0]), given=given, batch_eval_metrics=True) == {}
    assert metric.calls == []


def test_a_metric_in_batches_gets_tensors_of_predictions_labels_inputs_and_losses(tmp_path):
    seen = []

    def metrics(prediction, compute_result):
        assert not any(value.requires_grad for value in prediction)
        seen.append([(type(value), tuple(value.shape)) for value in prediction])
        return {}

    options = {"batch_eval_metrics": True, "include_for_metrics": ["inputs", "loss"]}
    evaluated(tmp_path, Classifier(), named_rows(5), given={"compute_metrics": metrics}, **options)
    shapes = ([(rows, 3), (rows,), (rows, 4), (rows,)] for rows in (3, 2))
    assert seen == [[(torch.Tensor, shape) for shape in batch] for batch in shapes]


def test_inputs_and_losses_are_included_on_request(tmp_path):
    seen = []

    def metrics(prediction):
        predictions, labels, inputs, losses = prediction
        seen.append((predictions.shape, labels.shape, inputs, losses))
        assert prediction[2] is inputs
        return {}

    rows = named_rows(5)
    options = {"include_for_metrics": ["inputs", "loss"]}
    evaluated(tmp_path, Classifier(), rows, given={"compute_metrics": metrics}, **options)
    (((shape, label_shape, inputs, losses)),) = seen
    assert (shape, label_shape) == ((5, 3), (5,))
    np.testing.assert_array_equal(inputs, rows.columns["x"].numpy())
    batches = [(0, 3), (3, 5)]
    per_batch = [Classifier()(rows.columns["x"][a:b], rows.columns["labels"][a:b])["loss"].item() for a, b in batches]
    np.testing.assert_allclose(losses, np.repeat(per_batch, [3, 2]), rtol=1e-6)


def test_logits_are_preprocessed_before_they_are_kept(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions)
        return accuracy(EvalPrediction(np.eye(3)[prediction.predictions], prediction.label_ids))

    given = {
        "compute_metrics": metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    rows = named_rows(7)
    found = evaluated(tmp_path, Classifier(), rows, given=given)
    assert found == evaluated(tmp_path, Classifier(), rows, given={"compute_metrics": accuracy})
    assert seen[0].shape == (7,)


def test_metrics_become_what_json_holds(tmp_path):
    given = {
        "compute_metrics": lambda prediction: {
            "numpy": np.float32(0.5),
            "bool": np.bool_(True),
            "torch": torch.tensor(2),
            "one": torch.tensor([0.25]),
            "array": np.arange(3),
            "tensor": torch.ones(2),
            "nested": {"per_class": [np.float64(0.5), torch.tensor(1)]},
            "eval_own": 1,
        }
    }
    trainer = trainer_for(tmp_path, Classifier(), given=given)
    found = untimed(trainer.evaluate(named_rows(4)))
    del found["eval_loss"]
    assert found == {
        "eval_numpy": 0.5,
        "eval_bool": True,
        "eval_torch": 2,
        "eval_one": 0.25,
        "eval_array": [0, 1, 2],
        "eval_tensor": [1.0, 1.0],
        "eval_nested": {"per_class": [0.5, 1]},
        "eval_own": 1,
    }
    assert json.dumps(trainer.state.log_history)


def test_text_and_numbers_are_plain_already():
    assert [plain(value) for value in ("text", 1, None, (1, 2))] == ["text", 1, None, [1, 2]]


def test_loss_only_evaluation_calls_no_metric_and_keeps_nothing(tmp_path):
    def metrics(prediction):
        raise AssertionError("called")

    given = {"compute_metrics": metrics}
    trainer = trainer_for(tmp_path, Classifier(), given=given, prediction_loss_only=True)
    assert untimed(trainer.evaluate(named_rows(5))).keys() == {"eval_loss"}
    output = trainer.predict(named_rows(5))
    assert (output.predictions, output.label_ids) == (None, None)


def test_a_metric_function_that_raises_is_named_with_the_step(tmp_path):
    def metrics(prediction):
        raise KeyError("f1")

    with pytest.raises(KeyError) as caught:
        evaluated(tmp_path, Classifier(), named_rows(4), given={"compute_metrics": metrics})
    assert caught.value.__notes__ == ["raised in compute_metrics, in the evaluation at step 0"]


def test_a_metric_function_that_returns_no_mapping_is_refused(tmp_path):
    with pytest.raises(DataError, match="compute_metrics: must return a mapping from names to numbers, got float"):
        evaluated(tmp_path, Classifier(), named_rows(4), given={"compute_metrics": lambda prediction: 0.5})


# Datasets, prefixes and hooks -------------------------------------------------------------------------------------


def test_a_mapping_of_datasets_gives_metrics_under_their_names(tmp_path):
    datasets = {"near": named_rows(4), "far": named_rows(6, seed=1)}
    trainer = trainer_for(tmp_path, Classifier(), given={"eval_dataset": datasets})
    metrics = untimed(trainer.evaluate())
    assert list(metrics) == ["eval_near_loss", "eval_far_loss"]
    assert metrics["eval_far_loss"] == trainer.evaluate(datasets["far"])["eval_loss"]
    assert metrics["eval_far_loss"] == trainer.evaluate("far")["eval_loss"]
    assert len(trainer.state.log_history) == 4
    assert "epoch" in trainer.state.log_history[0]


def test_a_prefix_stands_before_each_metric_that_lacks_it(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), given={"compute_metrics": lambda p: {"a": 1, "dev_b": 2}})
    metrics = trainer.evaluate(named_rows(4), metric_key_prefix="dev")
    names = ["dev_loss", "dev_a", "dev_b", "dev_runtime", "dev_samples_per_second", "dev_steps_per_second", "epoch"]
    assert list(metrics) == names


def test_an_unknown_name_of_a_dataset_is_refused(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), given={"eval_dataset": {"near": named_rows(4)}})
    with pytest.raises(SettingsError, match=r"eval_dataset: there is none called 'neat'\. Did you mean 'near'"):
        trainer.evaluate("neat")


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_an_empty_dataset_is_refused(tmp_path, call):
    trainer = trainer_for(tmp_path, Classifier())
    with pytest.raises(DataError, match="has no samples, got length 0"):
        getattr(trainer, call)(named_rows(0))
    with pytest.raises(DataError, match="evaluation dataset: gave no sample"):
        getattr(trainer, call)(Stream(named_rows(0)))


class Listening:
    def __init__(self):
        self.heard = []

    def on_prediction_step(self):
        self.heard.append("step")

    def on_evaluate(self, metrics):
        self.heard.append(sorted(untimed(metrics)))

    def on_predict(self, metrics):
        self.heard.append(sorted(untimed(metrics)))


def test_hooks_hear_of_each_batch_and_of_the_metrics(tmp_path):
    plugin = Listening()
    trainer = trainer_for(tmp_path, Classifier(), given={"plugins": [plugin]}, per_device_eval_batch_size=3)
    trainer.evaluate(named_rows(5))
    trainer.predict(named_rows(2))
    assert plugin.heard == ["step", "step", ["eval_loss"], "step", ["test_loss"]]


class Labelled(Trainer):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, None if logits is None else logits + 1, labels


def test_an_override_of_prediction_step_is_used(tmp_path):
    rows = named_rows(5)
    plain_trainer, own = (trainer_for(tmp_path, Classifier(), kind=kind) for kind in (Trainer, Labelled))
    np.testing.assert_allclose(own.predict(rows).predictions, plain_trainer.predict(rows).predictions + 1)


def test_transformers_outputs_leave_their_caches_out(tmp_path):
    from tests.test_step import bert, causal_rows, gpt2, sentences

    for build, rows, shape in ((gpt2, causal_rows, (6, 7, 50)), (bert, sentences, (6, 3))):
        model = build()
        trainer = trainer_for(tmp_path, model, per_device_eval_batch_size=4)
        output = trainer.predict(rows())
        assert output.predictions.shape == shape
        model.eval()
        expected = model(**rows().columns).loss.item()
        assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
