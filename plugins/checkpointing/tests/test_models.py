"""Checkpoints of transformers' models and of models with tied weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from trainer_core import Trainer, TrainingArguments


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Tokens(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        ids = torch.arange(index, index + 5) % 11
        return {"input_ids": ids, "labels": ids}


def trained(model, output_dir, steps, resume=None):
    args = TrainingArguments(
        str(output_dir), max_steps=steps, per_device_train_batch_size=4, save_steps=4, block_plugins=["console"],
        learning_rate=0.01, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=Tokens())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_tied_weights_of_a_plain_module_are_saved_once_and_stay_tied(tmp_path):
    torch.manual_seed(0)
    whole = trained(Tied(), tmp_path / "whole", 8)
    torch.manual_seed(0)
    trained(Tied(), tmp_path / "cut", 4)
    again = trained(Tied(), tmp_path / "cut", 8, resume=True)
    assert equal(whole.model, again.model)
    assert again.model.head.weight is again.model.embedding.weight


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_transformers_checkpoint_loads_with_from_pretrained(kind, tmp_path):
    transformers = pytest.importorskip("transformers")

    def model():
        torch.manual_seed(0)
        if kind == "gpt2":
            small = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
            return transformers.GPT2LMHeadModel(small)
        small = transformers.BertConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8,
        )  # fmt: skip
        return transformers.BertForMaskedLM(small)

    whole = trained(model(), tmp_path / "whole", 8)
    trained(model(), tmp_path / "cut", 4)
    again = trained(model(), tmp_path / "cut", 8, resume=True)
    assert equal(whole.model, again.model)
    loaded = type(whole.model).from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert equal(whole.model, loaded)
