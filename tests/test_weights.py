from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from tests.test_step import gpt2, llama
from tests.toys import Classifier, trainer_for, weights_of
from trainer_core.weights import write_model


def test_a_model_without_a_library_writes_one_file(tmp_path):
    model, other = Classifier(seed=1), Classifier(seed=2)
    write_model(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(weights_of(other), weights_of(model))


def test_a_weight_with_two_names_is_written_once(tmp_path):
    model, other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for one in (model, other):
        one[1].weight = one[0].weight
    write_model(model, tmp_path)
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other[1].weight, model[1].weight)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_transformers_model_writes_what_it_reads_itself(tmp_path, build):
    model = build()
    write_model(model, tmp_path)
    assert torch.equal(weights_of(type(model).from_pretrained(tmp_path)), weights_of(model))


class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def test_save_model_writes_the_tokenizer_beside_the_model(tmp_path):
    trainer = trainer_for(tmp_path / "run", Classifier(seed=1), given={"processing_class": Tokenizer()})
    trainer.save_model(tmp_path / "saved")
    trainer.save_model()
    for folder in ("saved", "run"):
        assert {path.name for path in (tmp_path / folder).iterdir()} >= {"model.safetensors", "tokenizer.json"}
