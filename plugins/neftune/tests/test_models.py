"""Models of many kinds get their noise, each of their tokens by its own mask, and keep nothing of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainer_core import Trainer, TrainingArguments
from trainer_core_neftune import noise as noise_module


class Looking:
    """Notes what the noise is on the named modules, after ours has put it there."""

    def __init__(self, *names):
        self.names = names
        self.seen = {name: [] for name in names}
        self.dtypes = set()

    def on_train_begin(self, trainer):
        modules = dict(trainer.model.named_modules())
        self.handles = [modules[name].register_forward_hook(self.noting(name)) for name in self.names]

    def noting(self, name):
        def note(module, args, output):
            if module.training:
                self.dtypes.add(output.dtype)
                self.seen[name].append((output - functional.embedding(args[0], module.weight)).detach())

        return note

    def on_teardown(self):
        for handle in self.handles:
            handle.remove()


@pytest.fixture
def drawn(monkeypatch):
    """Counts how often noise is drawn."""
    calls = []
    own = noise_module.uniform_noise
    monkeypatch.setattr(noise_module, "uniform_noise", lambda *args: calls.append(1) or own(*args))
    return calls


def is_noised(noise):
    """Gives (batch, sequence): which tokens have noise."""
    return (noise != 0).any(-1)


# Encoder and decoder -----------------------------------------------------------------------------------------------


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=32, decoder_start_token_id=0, pad_token_id=0, **size))


def bart():
    from transformers import BartConfig, BartForConditionalGeneration

    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    return BartForConditionalGeneration(BartConfig(vocab_size=32, pad_token_id=0, **size, **heads))


NAMES = {t5: ("encoder.embed_tokens", "decoder.embed_tokens")}
NAMES[bart] = tuple(f"model.{name}" for name in NAMES[t5])


@pytest.mark.parametrize("has_decoder_mask", [False, True])
@pytest.mark.parametrize("kind", [t5, bart])
def test_encoder_and_decoder_are_noisy_each_by_its_own_mask(small, tmp_path, kind, has_decoder_mask):
    mask, decoder_mask = torch.tensor([1, 1, 1, 0, 0]), torch.tensor([1, 1, 0, 0, 0])
    row = {"input_ids": torch.arange(5) + 1, "attention_mask": mask, "labels": torch.arange(5) + 1}
    if has_decoder_mask:
        row["decoder_attention_mask"] = decoder_mask
    looking = Looking(*NAMES[kind])
    args = TrainingArguments(tmp_path, max_steps=1, neftune_noise_alpha=5.0, disable_tqdm=True)
    Trainer(kind(), args, train_dataset=[row] * 4, callbacks=[looking]).train()
    encoder, decoder = (is_noised(noises[0]) for noises in looking.seen.values())
    assert (encoder == mask.bool()).all()
    assert (decoder == (decoder_mask.bool() if has_decoder_mask else torch.ones(5).bool())).all()


def test_each_embedding_of_one_weight_is_noisy_once(small, tmp_path, drawn):
    args = TrainingArguments(tmp_path, max_steps=1, neftune_noise_alpha=5.0, disable_tqdm=True)
    row = {"input_ids": torch.arange(5) + 1, "labels": torch.arange(5) + 1}
    Trainer(t5(), args, train_dataset=[row] * 4).train()
    assert len(drawn) == 2


# PEFT --------------------------------------------------------------------------------------------------------------


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (("LoraConfig", {"r": 2, "target_modules": ["c_attn"]}), "base_model.model.transformer.wte"),
        (("PromptTuningConfig", {"num_virtual_tokens": 2}), "base_model.transformer.wte"),
    ],
)
def test_a_causal_model_in_peft_leaves_padding_alone(tmp_path, config, place):
    peft = pytest.importorskip("peft")
    kind, options = config
    model = peft.get_peft_model(gpt2(), getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    mask = torch.tensor([1, 1, 1, 0, 0])
    row = {"input_ids": torch.arange(5) + 1, "attention_mask": mask, "labels": torch.arange(5) + 1}
    looking = Looking(place)
    args = TrainingArguments(tmp_path, max_steps=1, neftune_noise_alpha=5.0, disable_tqdm=True)
    Trainer(model, args, train_dataset=[row] * 4, callbacks=[looking]).train()
    assert (is_noised(looking.seen[place][0]) == mask.bool()).all()


def test_adapters_on_the_embedding_itself_are_noisy_once(tmp_path, drawn):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["wte"]))
    row = {"input_ids": torch.arange(5) + 1, "labels": torch.arange(5) + 1}
    args = TrainingArguments(tmp_path, max_steps=1, neftune_noise_alpha=5.0, disable_tqdm=True)
    Trainer(model, args, train_dataset=[row] * 4).train()
    assert len(drawn) == 1


def test_a_wrapper_that_hands_on_positions_finds_the_mask():
    peft = pytest.importorskip("peft")
    model = peft.PeftModel(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"]))
    embedding = model.get_input_embeddings()
    noise = noise_module.Noise(model, {"wte": embedding}, 5.0)
    seen = []
    handle = embedding.register_forward_hook(lambda module, args, output: seen.append(output - module.weight[args[0]]))
    model.train()(torch.ones(1, 3, dtype=torch.long), None, torch.tensor([[1, 1, 0]]))
    handle.remove()
    noise.remove()
    assert is_noised(seen[0]).tolist() == [[True, True, False]]


# Compiled ----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Has no part whose mode a compiler would look at."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(32, 16), nn.Linear(16, 2)

    def get_input_embeddings(self):
        return self.tokens

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.tokens(input_ids).mean(1))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2}


@pytest.mark.slow
def test_a_graph_from_before_does_not_keep_the_noise_out_nor_does_it_stay(small, tmp_path, drawn):
    model, counts = Plain(), []
    for place, alpha in enumerate([None, 5.0, None, 5.0]):
        before = len(drawn)
        small.trainer(tmp_path / str(place), model=model, neftune_noise_alpha=alpha, **COMPILED).train()
        counts.append(len(drawn) - before)
    assert counts == [0, 2, 0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_model_that_its_user_compiled_and_called_is_noisy(small, tmp_path, drawn, how):
    model = Plain()
    if how == "wrapped":
        model = torch.compile(model, backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    model(torch.ones(4, 9, dtype=torch.long), labels=torch.zeros(4, dtype=torch.long))
    small.trainer(tmp_path, model=model, max_steps=2).train()
    assert len(drawn) == 2


# Steps -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Embeds within what is checkpointed, so that the noise is drawn again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(32, 16), nn.Linear(16, 16)

    def forward(self, ids):
        return self.mix(self.tokens(ids)).tanh()


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Block(), nn.Linear(16, 2))

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.layers(input_ids).mean(1)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Twice(Trainer):
    """Calls the model twice in a step, the second time with another mask."""

    def compute_loss(self, model, inputs, return_outputs=False):
        other = {name: value.clone() for name, value in inputs.items()}
        other["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return model(**inputs)["loss"] + model(**other)["loss"]


@pytest.mark.parametrize("kind", [Trainer, Twice])
def test_an_embedding_that_is_called_again_for_its_gradient_has_the_same_noise(small, tmp_path, drawn, kind):
    trained, counts = [], []
    for again in (False, True):
        neftune = {"noise_alpha": 50.0, "embedding_module": "layers.0.tokens"}
        options = {"max_steps": 3, "neftune": neftune, "optim": "sgd", "learning_rate": 0.1}
        args = TrainingArguments(tmp_path / str(again), gradient_checkpointing=again, disable_tqdm=True, **options)
        model, before = Stacked(), len(drawn)
        kind(model, args, train_dataset=small.Sentences()).train()
        trained.append(model)
        counts.append(len(drawn) - before)
    assert counts[1] == 2 * counts[0]
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in trained), strict=True))


def test_each_of_several_calls_in_a_step_has_noise_by_its_own_mask(small, tmp_path):
    looking = Looking("tokens")
    small.trainer(tmp_path, kind=Twice, callbacks=[looking], max_steps=1, train_sampling_strategy="sequential").train()
    first, second = looking.seen["tokens"]
    assert is_noised(first).sum(1).tolist() == [2, 3, 4, 5]
    assert is_noised(second).sum(1).tolist() == [9, 9, 9, 9]
    assert not torch.equal(first[0, :2], second[0, :2])


class Tied(nn.Module):
    """Predicts with the weight that it embeds with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(32, 16, padding_idx=0), nn.Linear(16, 32, bias=False)
        self.head.weight = self.tokens.weight

    def get_input_embeddings(self):
        return self.tokens

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.tokens(input_ids))
        return {"loss": functional.cross_entropy(logits[:, 0], labels), "logits": logits}


def test_tied_embeddings_stay_tied_and_get_noise_on_the_way_in_alone(small, tmp_path, drawn):
    model = Tied()
    small.trainer(tmp_path, model=model, max_steps=3).train()
    assert model.head.weight is model.tokens.weight
    assert len(drawn) == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_keeps_the_type_of_the_embedding(small, tmp_path, precision):
    looking = Looking("tokens")
    small.trainer(tmp_path, callbacks=[looking], max_steps=2, **{precision: True}).train()
    assert looking.dtypes == {torch.float32}
    assert is_noised(looking.seen["tokens"][0]).any()


def test_a_model_in_half_precision_keeps_its_type(small, tmp_path):
    looking = Looking("tokens")
    small.trainer(tmp_path, model=small.Net().bfloat16(), callbacks=[looking], max_steps=1).train()
    assert looking.dtypes == {torch.bfloat16}
    assert is_noised(looking.seen["tokens"][0]).any()
