from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.test_step import bert, gpt2, llama
from tests.toys import Classifier, Regressor, named_rows, trainer_for
from trainer_core import ModelError
from trainer_core.loss import (
    Count,
    call_model,
    find_loss,
    is_shifted,
    logits_of,
    loss_of,
    smoothed_loss,
    split_labels,
    takes,
    takes_count,
)

LOSS = torch.tensor(2.0)
LOGITS = torch.ones(2, 3)


# Count ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda count: LOSS / count,
        lambda count: torch.div(LOSS, other=count),
        lambda count: LOSS * (1 / count),
        lambda count: LOSS / count.item(),
        lambda count: LOSS / int(count),
        lambda count: LOSS / count.to("cpu"),
        lambda count: LOSS / count.clamp(min=1),
        lambda count: LOSS / max(count, 1),
    ],
)
def test_dividing_by_a_count_uses_it(use):
    count = Count.of(torch.tensor(4))
    assert use(count) == 0.5
    assert count.was_used
    assert type(use(count)) is torch.Tensor


@pytest.mark.parametrize(
    "look",
    [
        lambda count: count is not None,
        lambda count: count.shape == () and count.ndim == 0 and count.dim() == 0,
        lambda count: count.device == torch.device("cpu") and count.dtype == torch.int64,
        lambda count: isinstance(count, torch.Tensor) and torch.is_tensor(count),
        lambda count: count > 0 and count == 4 and count != 5 and count < 9,
        bool,
        lambda count: "4" in repr(count) and "4" in f"{count}" and "4" in str(count),
    ],
)
def test_looking_at_a_count_does_not_use_it(look):
    count = Count.of(torch.tensor(4))
    assert look(count)
    assert not count.was_used


# Finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "loss"),
    [
        (LOSS, LOSS),
        ((LOSS, LOGITS), LOSS),
        ([LOSS], LOSS),
        ({"loss": LOSS}, LOSS),
        (SimpleNamespace(loss=LOSS), LOSS),
        (LOGITS, None),
        ((LOGITS, LOSS), None),
        ((torch.ones(1, 1), LOGITS), None),
        ((torch.ones(1),), None),
        ((), None),
        ({"logits": LOGITS}, None),
        (None, None),
    ],
)
def test_a_loss_stands_first_under_its_name_or_as_an_attribute(outputs, loss):
    assert find_loss(outputs) is loss


@pytest.mark.parametrize(
    ("outputs", "described"),
    [
        ({"logits": LOGITS, "states": LOGITS}, "dict with logits, states"),
        ({}, "dict with nothing"),
        ((LOGITS, LOGITS), "a tuple of 2"),
        (LOGITS, r"a tensor of shape \(2, 3\)"),
        (None, "NoneType"),
    ],
)
def test_outputs_without_a_loss_are_described(outputs, described):
    with pytest.raises(ModelError, match=f"model: returned no loss, got {described}. Return the loss first"):
        loss_of(outputs)


@pytest.mark.parametrize(
    ("outputs", "logits"),
    [
        ({"loss": LOSS, "states": LOSS, "logits": LOGITS}, LOGITS),
        ({"loss": LOSS, "scores": LOGITS}, LOGITS),
        ({"loss": LOSS}, None),
        ((LOSS, LOGITS, LOSS), LOGITS),
        ((LOGITS, LOSS), LOGITS),
        ((LOSS,), None),
        (SimpleNamespace(logits=LOGITS), LOGITS),
        (LOGITS, LOGITS),
    ],
)
def test_logits_are_named_or_follow_the_loss(outputs, logits):
    assert logits_of(outputs) is logits


@pytest.mark.parametrize("batch", [{"x": LOGITS, "labels": LOSS}, (LOGITS, LOSS), [LOGITS, LOSS]])
def test_labels_are_taken_off_a_batch(batch):
    labels, rest = split_labels(batch, ("labels",))
    assert labels is LOSS
    assert (rest["x"] if isinstance(rest, dict) else rest[0]) is LOGITS
    assert len(rest) == 1


def test_several_labels_are_a_tuple():
    batch = {"x": LOGITS, "start_positions": LOSS, "end_positions": LOGITS}
    labels, _ = split_labels(batch, ("start_positions", "end_positions"))
    assert labels[0] is LOSS
    assert labels[1] is LOGITS


@pytest.mark.parametrize("batch", [{"x": LOGITS}, (LOGITS,), LOGITS])
def test_a_batch_may_have_no_labels(batch):
    assert split_labels(batch, ("labels",))[0] is None


class Echo(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("batch", "called"),
    [
        ({"x": 1}, ((), {"x": 1, "n": 2})),
        ((1, 3), ((1, 3), {"n": 2})),
        ([1], ((1,), {"n": 2})),
        (namedtuple("Pair", "a b")(1, 3), ((1, 3), {"n": 2})),  # any named tuple
        (5, ((5,), {"n": 2})),
    ],
)
def test_a_model_is_called_as_its_batch_is_built(batch, called):
    assert call_model(Echo(), batch, n=2) == called


# transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "shifted"), [(gpt2, True), (llama, True), (bert, False), (Classifier, False)])
def test_causal_language_models_shift_their_labels(build, shifted):
    assert is_shifted(build()) is shifted


def test_a_subclass_of_a_causal_model_shifts_too():
    from transformers import LlamaForCausalLM

    class Mine(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    assert is_shifted(Mine(llama().config))


def test_models_that_predict_labels_in_place_do_not_shift():
    from transformers import BartConfig, BartForCausalLM, T5Config, T5ForConditionalGeneration

    small = {"d_model": 8, "decoder_layers": 1, "decoder_ffn_dim": 8, "decoder_attention_heads": 2, "vocab_size": 50}
    assert not is_shifted(BartForCausalLM(BartConfig(**small)))
    assert not is_shifted(
        T5ForConditionalGeneration(T5Config(num_layers=1, d_model=8, d_ff=8, d_kv=4, num_heads=2, vocab_size=50))
    )


@pytest.mark.parametrize(
    ("build", "wants"), [(gpt2, True), (llama, True), (bert, True), (Classifier, False), (Echo, False)]
)
def test_a_count_goes_to_models_that_take_it(build, wants):
    assert takes_count(build()) is wants


def test_arguments_are_told_by_name():
    assert takes(smoothed_loss, "shifted")
    assert not takes(smoothed_loss, "num_items_in_batch")


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), tokens=st.integers(2, 6), factor=st.floats(0.01, 1), seed=st.integers(0, 99))
@pytest.mark.parametrize("shifted", [False, True])
def test_label_smoothing_equals_that_of_transformers(shifted, rows, tokens, factor, seed):
    from transformers.trainer_pt_utils import LabelSmoother

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.4] = -100
    labels[-1, -1] = 3
    ours = smoothed_loss({"logits": logits}, labels, factor, shifted=shifted)
    theirs = LabelSmoother(epsilon=factor)({"logits": logits}, labels, shift_labels=shifted)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # theirs sums in float32


def test_label_smoothing_is_the_loss_of_the_trainer(tmp_path):
    model, rows = Classifier(), named_rows(4)
    batch = dict(rows.columns)
    trainer = trainer_for(tmp_path, model, rows, label_smoothing_factor=0.2)
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert torch.equal(loss, smoothed_loss(outputs, batch["labels"], 0.2, shifted=False))


def test_label_smoothing_without_labels_is_refused(tmp_path):
    trainer = trainer_for(tmp_path, Classifier(), named_rows(4), label_smoothing_factor=0.2)
    with pytest.raises(ModelError, match="label_smoothing_factor: needs one label tensor in the batch"):
        trainer.compute_loss(trainer.model, {"x": torch.ones(2, 4)})


# What prediction_step gives ---------------------------------------------------------------------------------------


def test_prediction_step_gives_loss_logits_and_labels(tmp_path):
    x, y = torch.ones(3, 4), torch.zeros(3, 2)
    trainer = trainer_for(tmp_path, Regressor())
    loss, logits, labels = trainer.prediction_step(trainer.model, (x, y), prediction_loss_only=False)
    assert torch.equal(loss, nn.functional.mse_loss(logits, y))
    assert logits.shape == (3, 2)
    assert labels is y
    assert trainer.prediction_step(trainer.model, (x, y), prediction_loss_only=True)[1:] == (None, None)


class Autoencoder(nn.Module):
    """Gives (loss, reconstruction) without labels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        again = self.layer(x)
        return ((again - x) ** 2).mean(), again


def test_a_loss_without_labels_is_no_prediction(tmp_path):
    trainer = trainer_for(tmp_path, Autoencoder())
    loss, logits, labels = trainer.prediction_step(trainer.model, {"x": torch.ones(3, 4)}, prediction_loss_only=False)
    assert loss.ndim == 0
    assert logits.shape == (3, 4)
    assert labels is None
