from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.test_step import causal_rows, llama, same
from tests.toys import Classifier, Gradients, gradients, named_rows, pairs, trained, trainer_for
from trainer_core import ModelError
from trainer_core.activations import checkpoint_activations


class Deep(nn.Module):
    """Blocks in lists inside lists; counts how often the first one runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(2)])
        self.blocks = nn.ModuleList([Residual(copy.deepcopy(block)) for _ in range(2)])
        self.head = nn.Linear(4, 3)

    def forward(self, x, labels):
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return functional.cross_entropy(logits, labels), logits


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.runs = 0

    def forward(self, x, scale=1.0):
        self.runs += 1
        for layer in self.inner:
            x = x + scale * layer(x)
        return x


@pytest.mark.parametrize("build", [Classifier, Deep])
@pytest.mark.parametrize("options", [{}, {"activation_checkpointing_kwargs": {"use_reentrant": False}}])
def test_gradients_are_those_without_checkpointing_to_the_bit(tmp_path, build, options):
    plain = gradients(tmp_path, build(), pairs(12))
    checkpointed = gradients(tmp_path, build(), pairs(12), activation_checkpointing=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_members_of_the_outermost_lists_run_again_in_backward():
    model = Deep()
    undo = checkpoint_activations(model, None)
    model(torch.ones(2, 4), torch.tensor([0, 1]))[0].backward()
    assert [block.runs for block in model.blocks] == [2, 2]
    undo()
    model(torch.ones(2, 4), torch.tensor([0, 1]))[0].backward()
    assert [block.runs for block in model.blocks] == [3, 3]


def test_nothing_is_left_on_the_model_after_a_run(tmp_path):
    run = trained(tmp_path, Deep(), pairs(8), activation_checkpointing=True)
    assert all("forward" not in vars(module) for module in run.model.modules())


def test_nothing_is_left_on_the_model_after_a_run_that_failed(tmp_path):
    class Failing(Gradients):
        def on_pre_optimizer_step(self, trainer):
            raise ValueError("no")

    trainer = trainer_for(tmp_path, Deep(), pairs(8), given={"plugins": [Failing()]}, activation_checkpointing=True)
    with pytest.raises(ValueError, match="no"):
        trainer.train()
    assert all("forward" not in vars(module) for module in trainer.model.modules())


def test_a_forward_that_was_set_on_a_block_comes_back():
    model = Deep()
    own = model.blocks[0].forward
    model.blocks[0].forward = own
    checkpoint_activations(model, None)()
    assert vars(model.blocks[0])["forward"] is own
    assert "forward" not in vars(model.blocks[1])


def test_a_model_without_lists_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"activation_checkpointing: the model has no nn\.ModuleList"):
        checkpoint_activations(nn.Linear(2, 2), None)


def test_a_transformers_model_checkpoints_itself_and_stops(tmp_path):
    torch.manual_seed(0)
    model, rows = llama().double(), causal_rows()
    plain = gradients(tmp_path, model, rows)
    seen = []

    class Looking(Gradients):
        def on_step_end(self, trainer):
            seen.append(trainer.model.is_activation_checkpointing)

    run = trained(tmp_path, model, rows, given={"plugins": [Looking()]}, activation_checkpointing=True)
    same(plain, gradients(tmp_path, model, rows, activation_checkpointing=True))
    assert seen == [True, True]
    assert not run.model.is_activation_checkpointing


def test_a_transformers_model_that_checkpointed_before_still_does(tmp_path):
    model = llama()
    model.activation_checkpointing_enable()
    run = trained(tmp_path, model, causal_rows(), activation_checkpointing=True)
    assert run.model.is_activation_checkpointing


def test_evaluation_during_a_checkpointed_run_works(tmp_path):
    run = trained(
        tmp_path,
        Classifier(),
        named_rows(8),
        given={"eval_dataset": named_rows(4)},
        activation_checkpointing=True,
        eval_strategy="epoch",
    )
    assert run.state.log_history[0]["eval_loss"] > 0
