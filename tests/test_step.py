from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tests.toys import (
    Classifier,
    Gradients,
    Regressor,
    Rows,
    Stream,
    gradient_of,
    gradients,
    micro_batches,
    named_rows,
    pairs,
    table,
    trained,
    trainer_for,
    weights_of,
)
from trainer_core import DataError, ModelError, Trainer

IN_FOLDER = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_hand(model, dataset, *, build, size=4, accumulation=1, clip=None, rate=None, autocast=False, epochs=1):
    """The same run as a plain PyTorch loop: a micro-batch of n of N targets has the weight n / N."""
    model = copy.deepcopy(model).train()
    optimizer = build(model.parameters())
    batches = micro_batches(dataset, size)
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)] * epochs
    with torch.random.fork_rng():
        torch.manual_seed(42)
        for step, window in enumerate(windows):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step, len(windows))
            targets = sum(int((y != -100).sum()) for _, y in window)
            for x, y in window:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    loss = model(x, y)["loss"]
                (loss * (int((y != -100).sum()) / targets)).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return weights_of(model)


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0, fused=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.0)


def falling(step, steps):
    return 0.1 * ((steps - step) / steps)


PLAIN = {"max_grad_norm": None, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        (PLAIN, {"build": fused_adamw}),
        ({**PLAIN, "optim": "sgd"}, {"build": sgd}),
        ({**PLAIN, "max_grad_norm": 1e-3, "optim": "sgd"}, {"build": sgd, "clip": 1e-3}),
        ({**PLAIN, "max_grad_norm": 1e3}, {"build": fused_adamw, "clip": 1e3}),
        ({**PLAIN, "lr_scheduler_type": "linear"}, {"build": fused_adamw, "rate": falling}),
        ({**PLAIN, "gradient_accumulation_steps": 2}, {"build": fused_adamw, "accumulation": 2}),
        ({**PLAIN, "gradient_accumulation_steps": 3, "optim": "sgd"}, {"build": sgd, "accumulation": 3}),
        ({**PLAIN, "bf16": True}, {"build": fused_adamw, "autocast": True}),
        (
            {"max_grad_norm": 0.1, "gradient_accumulation_steps": 3, "num_train_epochs": 3, "bf16": True},
            {"build": fused_adamw, "clip": 0.1, "accumulation": 3, "rate": falling, "autocast": True, "epochs": 3},
        ),
    ],
    ids=["adamw", "sgd", "clip", "loose clip", "schedule", "accumulation", "short window", "bf16", "all"],
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_run_equals_a_plain_loop_to_the_bit(tmp_path, options, hand, dropout):
    model, data = Classifier(dropout), pairs(22)
    run = trained(tmp_path, model, data, **options)
    assert torch.equal(weights_of(run.model), by_hand(model, data, **hand))


def test_a_run_with_the_users_optimizer_and_schedule_equals_a_plain_loop_to_the_bit(tmp_path):
    data, model = pairs(22), Classifier()
    trainer = trainer_for(tmp_path, model, data, max_grad_norm=None)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1, momentum=0.9)
    trainer.optimizer = optimizer
    trainer.train()

    def build(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    assert torch.equal(weights_of(trainer.model), by_hand(model, data, build=build, rate=falling))


def test_a_shuffled_run_trains_on_the_samples_in_the_order_of_its_loader(tmp_path):
    data, model = pairs(22), Classifier()
    trainer = trainer_for(tmp_path, model, data, train_sampling_strategy="random", **PLAIN)
    order = [i for indices in trainer.get_train_dataloader().batch_sampler for i in indices]
    trainer.train()
    shuffled = TensorDataset(*(tensor[order] for tensor in data.tensors))
    assert sorted(order) == list(range(22))
    assert torch.equal(weights_of(trainer.model), by_hand(model, shuffled, build=fused_adamw))


def test_the_logged_loss_is_the_mean_over_the_targets_of_each_update(tmp_path):
    x, labels = table(12, dtype=torch.float64)
    labels[1:4] = -100
    model = Classifier().double()
    run = trained(tmp_path, model, TensorDataset(x, labels), learning_rate=0.0, gradient_accumulation_steps=2)
    losses = [model(x[a:b], labels[a:b])["loss"].item() for a, b in ((0, 8), (8, 12))]
    assert run.train_metrics["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)


# Splits -----------------------------------------------------------------------------------------------------------


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def split_and_whole(folder, model, data, rows, size, **options):
    """Gradients of one update over all rows, in micro-batches of `size` and in one."""
    parts = -(-rows // size)
    split = gradients(
        folder, model, data, per_device_train_batch_size=size, gradient_accumulation_steps=parts, **options
    )
    return split, gradients(folder, model, data, per_device_train_batch_size=rows, **options)


@IN_FOLDER
@given(
    rows=st.integers(2, 12), size=st.integers(1, 11), ignored=st.sets(st.integers(0, 11), max_size=10), data=st.data()
)
def test_any_split_gives_the_gradient_of_the_whole_batch(tmp_path, rows, size, ignored, data):
    x, labels = table(rows, dtype=torch.float64)
    labels[[row for row in ignored if 0 < row < rows]] = -100
    dataset = data.draw(st.sampled_from([TensorDataset(x, labels), Rows(x=x, labels=labels)]))
    same(*split_and_whole(tmp_path, Classifier().double(), dataset, rows, size))


@IN_FOLDER
@given(rows=st.integers(2, 8), size=st.integers(1, 7), seed=st.integers(0, 99), rate=st.floats(0, 0.95))
def test_any_split_of_token_labels_gives_the_gradient_of_the_whole_batch(tmp_path, rows, size, seed, rate):
    x, labels = table(rows, tokens=5, seed=seed, dtype=torch.float64)
    ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < rate
    labels[ignored] = -100
    labels[-1, -1] = 1
    same(*split_and_whole(tmp_path, Classifier().double(), Rows(x=x, labels=labels), rows, size))


@IN_FOLDER
@given(rows=st.integers(2, 9), size=st.integers(1, 8))
def test_any_split_of_float_labels_gives_the_gradient_of_the_whole_batch(tmp_path, rows, size):
    x, _ = table(rows, dtype=torch.float64)
    same(*split_and_whole(tmp_path, Regressor().double(), TensorDataset(x, x[:, :2].sin()), rows, size))


def test_micro_batches_without_targets_count_nothing(tmp_path):
    x, labels = table(16, dtype=torch.float64)
    labels[:4] = labels[12:] = -100
    same(*split_and_whole(tmp_path, Classifier().double(), TensorDataset(x, labels), 16, 4))


def test_the_last_short_window_is_an_update_of_its_own(tmp_path):
    x, labels = table(22, dtype=torch.float64)
    model = Classifier().double()
    found = gradients(tmp_path, model, TensorDataset(x, labels), learning_rate=0.0, gradient_accumulation_steps=2)
    for gradient, (a, b) in zip(found, [(0, 8), (8, 16), (16, 22)], strict=True):
        whole = copy.deepcopy(model)
        whole(x[a:b], labels[a:b])["loss"].backward()
        torch.testing.assert_close(gradient, gradient_of(whole), rtol=1e-12, atol=1e-14)


def test_an_update_without_any_target_ends_the_run(tmp_path):
    x, labels = table(16)
    labels[:] = -100
    with pytest.raises(DataError, match="update: none of its labels counts, all are -100"):
        trained(tmp_path, Classifier(), TensorDataset(x, labels), gradient_accumulation_steps=2)


def test_an_update_without_any_target_is_passed_over_when_the_policy_is_to_skip(tmp_path):
    x, labels = table(16)
    labels[8:] = -100
    options = {"lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    run = trained(tmp_path, Classifier(), TensorDataset(x, labels), nan_policy="skip", **options)
    half = trained(tmp_path, Classifier(), TensorDataset(x[:8], labels[:8]), **options)
    assert run.state.global_step == 2
    assert torch.equal(weights_of(run.model), weights_of(half.model))


def test_a_stream_trains_as_rows_do(tmp_path):
    rows = named_rows(22)
    stream = trained(tmp_path, Classifier(), Stream(rows), max_steps=3, gradient_accumulation_steps=2)
    plain = trained(tmp_path, Classifier(), rows, gradient_accumulation_steps=2)
    assert torch.equal(weights_of(stream.model), weights_of(plain.model))
    assert stream.state.num_samples_seen == plain.state.num_samples_seen == 22


# num_items_in_batch -----------------------------------------------------------------------------------------------


class Summing(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["x"])
        loss = functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class Ignoring(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert num_items_in_batch is not None
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class Guide(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


class Looking(Ignoring):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert num_items_in_batch > 0
        assert "9" in f"{num_items_in_batch}"
        assert num_items_in_batch.device == torch.device("cpu")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Stepping(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, num_items_in_batch)


class SteppingAsInTheGuide(Trainer):
    def training_step(self, model, inputs):
        return super().training_step(model, inputs)


def uneven_rows():
    x, labels = table(12, dtype=torch.float64)
    labels[1:4] = -100
    return Rows(x=x, labels=labels)


@pytest.mark.parametrize("kind", [Summing, Ignoring, Guide, Looking, Stepping, SteppingAsInTheGuide])
@pytest.mark.parametrize("size", [4, 5, 12])
def test_an_override_gives_the_models_own_gradient(tmp_path, kind, size):
    model, data = Classifier().double(), uneven_rows()
    split, _ = split_and_whole(tmp_path, model, data, 12, size, kind=kind)
    same(split, gradients(tmp_path, model, data, per_device_train_batch_size=12))


def summed(outputs, labels, num_items_in_batch):
    return functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def averaged(outputs, labels, num_items_in_batch=None):
    return functional.cross_entropy(outputs["logits"], labels)


@pytest.mark.parametrize("function", [summed, averaged])
@pytest.mark.parametrize("size", [4, 5, 12])
def test_a_loss_function_gives_the_models_own_gradient(tmp_path, function, size):
    model, data = Classifier().double(), uneven_rows()
    split, _ = split_and_whole(tmp_path, model, data, 12, size, given={"compute_loss_func": function})
    same(split, gradients(tmp_path, model, data, per_device_train_batch_size=12))


def test_a_loss_computed_by_an_override_of_training_step_is_logged(tmp_path):
    runs = [trained(tmp_path, Classifier(), named_rows(), kind=kind) for kind in (Trainer, Stepping)]
    assert runs[0].train_metrics["train_loss"] == runs[1].train_metrics["train_loss"] > 0


# transformers -----------------------------------------------------------------------------------------------------


def causal_rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (6, 7), generator=generator)
    labels = ids.clone()
    for row, length in enumerate([2, 7, 3, 6, 1, 5]):
        labels[row, length:] = -100
    labels[0, 0] = -100
    return Rows(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2)
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=50)
    )


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=50, num_labels=3
    )
    return BertForSequenceClassification(config)


def sentences():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (6, 7), generator=generator)
    labels = torch.tensor([0, -100, 2, 1, -100, 1])
    return Rows(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


@pytest.mark.parametrize(("build", "rows"), [(gpt2, causal_rows), (llama, causal_rows), (bert, sentences)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothed"])
def test_accumulation_of_a_transformers_model_gives_the_gradient_of_one_big_batch(tmp_path, build, rows, options):
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    split, whole = split_and_whole(tmp_path, model, rows(), 6, 2, **options)
    same(split, whole)
    if not options:
        model(**rows().columns).loss.backward()
        same(whole, [gradient_of(model)])


# Half precision ---------------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """Gives an infinite gradient, and a loss that is a number, in its first forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.calls = 0

    def forward(self, x, labels):
        self.calls += 1
        factor = torch.inf if self.calls == 1 else 1.0
        hooked = self.weight * 1.0
        hooked.register_hook(lambda gradient: gradient * factor)
        return ((x @ hooked - labels) ** 2).mean()


def test_fp16_scales_the_loss_and_unscales_the_gradient(tmp_path):
    model, data = Classifier(), pairs(16)
    scaled = gradients(tmp_path, model, data, fp16=True, learning_rate=0.0)
    for gradient, (x, y) in zip(scaled, micro_batches(data, 4), strict=True):
        hand = copy.deepcopy(model)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = hand(x, y)["loss"]
        loss.backward()
        torch.testing.assert_close(gradient, gradient_of(hand), rtol=1e-2, atol=1e-4)


def test_fp16_passes_over_an_update_whose_gradient_overflowed(tmp_path):
    x = torch.randn(8, 4)
    run = trainer_for(tmp_path, Overflowing(), TensorDataset(x, x.sum(1)), fp16=True, optim="sgd", max_steps=1)
    run.train()
    assert torch.equal(run.model.weight, torch.ones(4))
    assert run.scaler.get_scale() == 2.0**15
    assert run.lr_scheduler.get_last_lr() == [0.1]


# auto_find_batch_size ---------------------------------------------------------------------------------------------


class Hungry(Classifier):
    """Runs out of memory above `limit` samples, after it drew a random number."""

    def __init__(self, limit, dropout=0.5):
        super().__init__(dropout)
        self.limit = limit

    def forward(self, x, labels=None):
        torch.rand(3)
        outputs = super().forward(x, labels)
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return outputs


def test_a_batch_that_does_not_fit_is_split_and_gives_the_same_run(tmp_path, caplog):
    data = pairs(24)
    with caplog.at_level(logging.WARNING, logger="trainer_core.splitting"):
        found = trained(tmp_path, Hungry(limit=2), data, per_device_train_batch_size=8, auto_find_batch_size=True)
    small = trained(tmp_path, Hungry(limit=8), data, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert torch.equal(weights_of(found.model), weights_of(small.model))
    assert found.state.global_step == small.state.global_step == 3
    assert [record.getMessage()[:40] for record in caplog.records] == ["step 1: out of memory; micro-batches are"] * 2


@pytest.mark.parametrize("size", [5, 7, 8])
def test_splitting_in_place_keeps_the_gradient(tmp_path, size):
    x, labels = table(16, dtype=torch.float64)
    labels[2:9] = -100
    data = TensorDataset(x, labels)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 2}
    split = gradients(tmp_path, Hungry(limit=2, dropout=0.0).double(), data, auto_find_batch_size=True, **options)
    same(split, gradients(tmp_path, Hungry(limit=99, dropout=0.0).double(), data, **options))


def test_out_of_memory_with_one_sample_is_raised(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path, Hungry(limit=0), pairs(8), auto_find_batch_size=True)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    class Broken(Classifier):
        def forward(self, x, labels=None):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trained(tmp_path, Broken(), pairs(8), auto_find_batch_size=True)


# Compilation and losses -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("build", "rows"), [(Classifier, named_rows), (llama, causal_rows)])
def test_a_compiled_model_trains_as_the_plain_one(tmp_path, build, rows):
    torch.manual_seed(0)
    model = build().double()
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    data = rows() if build is llama else Rows(**{n: c.double() if n == "x" else c for n, c in rows().columns.items()})
    plain = gradients(tmp_path, model, data, **options)
    same(plain, gradients(tmp_path, model, data, torch_compile=True, torch_compile_backend="aot_eager", **options))


class Interrupted(Classifier):
    """Leaves the count of targets alone while its graph breaks, so that the compiler carries the count on."""

    def forward(self, x, labels=None, num_items_in_batch=None):
        logits = self.layers(x)
        torch._dynamo.graph_break()
        return {"loss": functional.cross_entropy(logits, labels), "seen": num_items_in_batch}


@pytest.mark.slow
def test_a_compiler_that_looks_at_the_count_does_not_use_it(tmp_path):
    model, data = Interrupted().double(), named_rows(dtype=torch.float64)
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    plain = gradients(tmp_path, model, data, **options)
    same(plain, gradients(tmp_path, model, data, torch_compile=True, torch_compile_backend="aot_eager", **options))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"logits": torch.ones(2)}, "model: returned no loss, got dict with logits"),
        (torch.ones(2), r"model: returned no loss, got a tensor of shape \(2,\)"),
        ({"loss": torch.ones(2, requires_grad=True)}, r"loss: must be one number, got shape \(2,\)"),
        ({"loss": torch.ones(())}, "loss: has no gradient, no parameter that requires one took part in it"),
    ],
)
def test_a_model_without_a_loss_is_refused(tmp_path, outputs, message):
    class Silent(Classifier):
        def forward(self, x, labels=None):
            return outputs

    with pytest.raises(ModelError, match=message):
        trained(tmp_path, Silent(), pairs(4))


def test_parameters_that_no_loss_reaches_stay(tmp_path):
    model = Classifier()
    model.unused = nn.Linear(2, 2)
    before = weights_of(model.unused)
    assert torch.equal(weights_of(trained(tmp_path, model, pairs(8)).model.unused), before)


def test_gradients_are_dropped_after_an_update(tmp_path):
    plugin = Gradients()
    run = trained(tmp_path, Classifier(), pairs(8), given={"plugins": [plugin]})
    assert len(plugin.kept) == 2
    assert all(parameter.grad is None for parameter in run.model.parameters())


class Bare(nn.Module):
    """Gives logits only; whoever trains it computes the loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


class Objective:
    """A plugin that answers for the batches it is asked about while `answers`."""

    def __init__(self, answers=True):
        self.answers = answers

    def compute_loss(self, trainer, model, inputs):
        if not self.answers:
            return None
        x, labels = inputs
        return 2 * nn.functional.cross_entropy(model(x), labels)


def test_a_plugin_computes_the_loss_of_training_and_evaluation(tmp_path):
    data = TensorDataset(torch.randn(8, 4), torch.randint(0, 3, (8,)))
    trainer = trainer_for(tmp_path, Bare(), data, given={"plugins": [Objective()], "eval_dataset": data})
    trainer.train()
    loss = 2 * nn.functional.cross_entropy(trainer.model(data.tensors[0]), data.tensors[1])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert trainer.predict(data).predictions.shape == (8, 3)


def test_a_plugin_that_does_not_answer_leaves_the_loss_to_the_model(tmp_path):
    torch.manual_seed(0)
    asked = trainer_for(tmp_path / "a", Classifier(), pairs(8), given={"plugins": [Objective(answers=False)]})
    asked.train()
    torch.manual_seed(0)
    alone = trainer_for(tmp_path / "b", Classifier(), pairs(8))
    alone.train()
    assert torch.equal(weights_of(asked.model), weights_of(alone.model))


def test_running_out_of_memory_while_weights_are_updated_is_not_tried_again(tmp_path):
    class Full:
        calls = 0

        def on_optimizer_step(self, trainer):
            Full.calls += 1
            raise MemoryError("no memory left")

    trainer = trainer_for(tmp_path, Classifier(), pairs(8), auto_find_batch_size=True, given={"plugins": [Full()]})
    with pytest.raises(MemoryError, match="no memory left"):
        trainer.train()
    assert Full.calls == 1
