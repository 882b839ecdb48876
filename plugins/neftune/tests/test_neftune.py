"""When the noise is on a model, and that nothing of it stays."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from trainer_core import ModelError, SettingsError, Trainer, TrainingArguments
from trainer_core.testing import PluginConformance
from trainer_core_neftune import Neftune
from trainer_core_neftune.embedding import embeddings_of


class TestNeftune(PluginConformance):
    plugin_type = Neftune
    flat: ClassVar = {"neftune_noise_alpha": 5.0}
    settings: ClassVar = {"noise_alpha": 5.0, "embedding_module": "embedding"}


def traces(model):
    """Gives all that a hook or an attribute could leave on any module."""
    return {
        name: {
            key: len(value) if key.startswith("_") and "hooks" in key else None for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def noise_of(model, *, training):
    return [noise for was_training, noise in model.embedded if was_training is training]


def test_training_is_noisy_and_evaluation_and_prediction_are_clean(small, tmp_path):
    trainer = small.trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert all((noise != 0).any() for noise in noise_of(trainer.model, training=True))
    assert len(noise_of(trainer.model, training=True)) == 6
    trainer.predict(small.Sentences())
    assert all((noise == 0).all() for noise in noise_of(trainer.model, training=False))


def test_every_step_has_noise_of_its_own_and_padding_has_none(small, tmp_path):
    trainer = small.trainer(tmp_path, train_sampling_strategy="sequential", num_train_epochs=2)
    trainer.train()
    first, *_, again = noise_of(trainer.model, training=True)[:7]
    assert not torch.equal(first, again)
    for row, noise in enumerate(first):
        assert (noise[2 + row :] == 0).all()
        bound = 5.0 / ((2 + row) * 16) ** 0.5
        assert 0.8 * bound < noise.abs().max() <= bound


def test_the_model_is_as_it_was_after_a_run_and_after_another(small, tmp_path):
    trainer = small.trainer(tmp_path)
    before = traces(trainer.model)
    trainer.train()
    assert traces(trainer.model) == before
    trainer.train()
    assert traces(trainer.model) == before


class Failing(Trainer):
    """Fails in the middle of a forward."""

    error: ClassVar = ValueError("mine")

    def compute_loss(self, model, inputs, return_outputs=False):
        if self.state.global_step == 2:
            raise self.error
        return super().compute_loss(model, inputs, return_outputs)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine")])
def test_the_model_is_as_it_was_after_an_error(small, tmp_path, error):
    trainer = small.trainer(tmp_path, kind=type("Own", (Failing,), {"error": error}))
    before = traces(trainer.model)
    with pytest.raises(type(error)):
        trainer.train()
    assert traces(trainer.model) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_model_is_as_it_was_when_a_forward_is_broken_off(small, tmp_path, number):
    class Breaking(small.Net):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            signal.raise_signal(number)  # the first asks to stop, the second stops at once
            signal.raise_signal(number)
            return outputs

    trainer = small.trainer(tmp_path, model=Breaking())
    before = traces(trainer.model)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert traces(trainer.model) == before
    assert (noise_of(trainer.model, training=True)[0] != 0).any()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_model_is_as_it_was_after_a_signal(small, tmp_path, number):
    class Pressing:
        def on_step_end(self, trainer):
            signal.raise_signal(number)

    trainer = small.trainer(tmp_path, callbacks=[Pressing()])
    before = traces(trainer.model)
    trainer.train()
    assert (trainer.outcome, trainer.state.global_step) == ("interrupted", 1)
    assert traces(trainer.model) == before


def test_the_model_is_as_it_was_when_another_plugin_fails_at_the_begin(small, tmp_path):
    class Broken:
        def on_train_begin(self, trainer):
            raise RuntimeError("theirs")

    trainer = small.trainer(tmp_path, callbacks=[Broken()])
    before = traces(trainer.model)
    with pytest.raises(RuntimeError, match="theirs"):
        trainer.train()
    assert traces(trainer.model) == before


def test_a_copy_that_is_made_while_training_adds_no_noise(small, tmp_path):
    copies = []

    class Copying:
        def on_step_end(self, trainer):
            copies.append(copy.deepcopy(trainer.model))
            copies.append(pickle.loads(pickle.dumps(trainer.model)))

    small.trainer(tmp_path, callbacks=[Copying()], max_steps=1).train()
    ids = torch.ones(2, 3, dtype=torch.long)
    for copied in copies:
        copied.train()(input_ids=ids, labels=ids[:, 0])
        assert torch.equal(copied.tokens(ids), copied.tokens.weight[ids])
        assert (noise_of(copied, training=True)[-1] == 0).all()
    assert len(copies) == 2


def test_a_checkpoint_holds_the_weights_and_nothing_of_ours(small, tmp_path):
    from safetensors import safe_open

    trainer = small.trainer(tmp_path, save_steps=3)
    trainer.train()
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(trainer.model.state_dict())


def test_evaluation_draws_no_random_number(small, tmp_path):
    states = []

    class Looking:
        def on_step_end(self, trainer):
            states.append(torch.get_rng_state())

        def on_evaluate(self, trainer):
            states.append(torch.get_rng_state())

    small.trainer(tmp_path, callbacks=[Looking()], eval_strategy="steps", eval_steps=1, max_steps=1).train()
    assert torch.equal(*states)


class Cut:
    """Stops a run after an update, as the user would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_resumed_run_ends_with_the_same_bits(small, tmp_path, step):
    whole = small.trainer(tmp_path / "whole", num_train_epochs=2)
    whole.train()
    small.trainer(tmp_path / "cut", num_train_epochs=2, callbacks=[Cut(step)]).train()
    resumed = small.trainer(tmp_path / "cut", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=True)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    silent = small.trainer(tmp_path / "silent", num_train_epochs=2, neftune_noise_alpha=None)
    silent.train()
    assert not torch.equal(whole.model.head.weight, silent.model.head.weight)


# Which module ------------------------------------------------------------------------------------------------------


def test_a_module_may_be_named(small, tmp_path):
    neftune = {"noise_alpha": 5.0, "embedding_module": "tokens"}
    args = TrainingArguments(tmp_path, max_steps=1, neftune=neftune, disable_tqdm=True)
    trainer = Trainer(small.Unnamed(), args, train_dataset=small.Sentences())
    trainer.train()
    assert (noise_of(trainer.model, training=True)[0] != 0).any()


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (
            None,
            "neftune: the model has no input embeddings, got Unnamed. "
            "Name the module whose output gets the noise: neftune={'embedding_module': '...'}.",
        ),
        (
            "inner",
            "neftune.embedding_module: the model has no such module, got 'inner'. Its parts are tokens, head, drop.",
        ),
        (
            "token",
            "neftune.embedding_module: the model has no such module, got 'token'. Did you mean 'tokens'? "
            "Its parts are tokens, head, drop.",
        ),
    ],
)
def test_a_model_without_such_a_module_is_refused_before_training(small, tmp_path, module, problem):
    args = TrainingArguments(tmp_path, max_steps=1, neftune={"noise_alpha": 5.0, "embedding_module": module})
    trainer = Trainer(small.Unnamed(), args, train_dataset=small.Sentences())
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [problem]
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("error", [NotImplementedError(), AttributeError("no word_embeddings")])
def test_a_base_class_that_leaves_it_to_others_has_none(small, tmp_path, error):
    class Base(small.Net):
        def get_input_embeddings(self):
            raise error

    with pytest.raises(SettingsError) as caught:
        small.trainer(tmp_path, model=Base()).train()
    assert caught.value.problems == [
        f"neftune: the model has no input embeddings, got Base, whose get_input_embeddings() raises {error!r}. "
        "Name the module whose output gets the noise: neftune={'embedding_module': '...'}."
    ]


def test_a_name_that_a_wrapper_made_longer_is_suggested():
    wrapped = torch.nn.ModuleDict({"base": torch.nn.ModuleDict({"tokens": torch.nn.Embedding(2, 2)})})
    with pytest.raises(ModelError, match=r"got 'tokens'\. Did you mean 'base\.tokens'\?"):
        embeddings_of(wrapped, "tokens")


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_a_strength_that_is_none_is_refused(alpha):
    with pytest.raises(SettingsError, match=r"must be above 0, got .* Use None for no noise; the paper takes 5 to 15"):
        TrainingArguments(neftune_noise_alpha=alpha)


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_a_strength_that_is_not_finite_is_refused(alpha):
    with pytest.raises(SettingsError, match="neftune_noise_alpha: must be a finite number"):
        TrainingArguments(neftune_noise_alpha=alpha)


def test_the_guides_name_reads_back():
    assert TrainingArguments(neftune_noise_alpha=0.1).neftune_noise_alpha == 0.1
    assert TrainingArguments().neftune_noise_alpha is None


# Kinds of models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
        )
    )


class Peeking:
    """Notes the noise of a transformers model while it trains: after ours, so that it sees what ours gave."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        embedding = trainer.model.get_input_embeddings()
        self.handle = embedding.register_forward_hook(self.note)

    def note(self, module, args, output):
        if module.training:
            self.seen.append((output - module.weight[args[0]]).detach())

    def on_teardown(self):
        self.handle.remove()


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_it_works_with_models_that_peft_wraps(small, tmp_path, bert, kind):
    peft = pytest.importorskip("peft")
    configs = {
        "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
        "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    }
    model = peft.get_peft_model(bert, configs[kind]())
    before = traces(model)
    peeking = Peeking()
    small.trainer(tmp_path, model=model, max_steps=2, callbacks=[peeking]).train()
    assert traces(model) == before
    assert len(peeking.seen) == 2
    assert all((noise != 0).any() for noise in peeking.seen)
    assert not torch.equal(*peeking.seen)


def test_a_model_that_model_init_makes_anew_is_noisy_each_time(small, tmp_path):
    made = []

    def model_init():
        made.append(small.Net())
        return made[-1]

    args = TrainingArguments(tmp_path, max_steps=2, neftune_noise_alpha=5.0, disable_tqdm=True)
    trainer = Trainer(model_init=model_init, args=args, train_dataset=small.Sentences())
    for _ in range(2):
        trainer.train()
        assert all((noise != 0).any() for noise in noise_of(trainer.model, training=True))
        assert len(noise_of(trainer.model, training=True)) == 2
    assert [sum(len(module._forward_hooks) for module in model.modules()) for model in made] == [0, 0, 0]


@pytest.mark.slow
def test_a_compiled_model_is_noisy_in_every_step(small, tmp_path, bert):
    before, peeking = traces(bert), Peeking()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3}
    trainer = small.trainer(tmp_path, model=bert, callbacks=[peeking], eval_strategy="steps", eval_steps=3, **options)
    trainer.train()
    assert len(peeking.seen) == 3
    assert all((noise != 0).any() for noise in peeking.seen)
    assert not torch.equal(peeking.seen[0], peeking.seen[1])
    del bert._is_torch_compile  # torch's, with or without noise
    assert traces(bert) == before


def test_activations_that_are_computed_again_see_the_same_noise(small, tmp_path, bert):
    plain, again = copy.deepcopy(bert), copy.deepcopy(bert)
    small.trainer(tmp_path / "plain", model=plain, max_steps=3).train()
    small.trainer(tmp_path / "again", model=again, max_steps=3, gradient_checkpointing=True).train()
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), again.parameters(), strict=True))


def test_each_micro_batch_has_noise(small, tmp_path):
    trainer = small.trainer(tmp_path, gradient_accumulation_steps=3)
    trainer.train()
    noises = noise_of(trainer.model, training=True)
    assert len(noises) == 6
    assert len({float(noise.sum()) for noise in noises}) == 6


RANKS = Path(__file__).with_name("ranks_script.py")


@pytest.mark.slow
def test_each_rank_draws_noise_of_its_own_and_all_end_with_the_same_weights(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(RANKS)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert (len(first["noise"]), len(second["noise"])) == (3, 3)
    assert all((noise != 0).any() for noise in (*first["noise"], *second["noise"]))
    assert not torch.equal(first["noise"][0].abs().max(), second["noise"][0].abs().max())
