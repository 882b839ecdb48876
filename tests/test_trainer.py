from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from trainer_core import PluginError, SettingsError, Trainer, TrainingArguments


def weights(model):
    return [parameter.tolist() for parameter in model.parameters()]


def spying(*methods):
    """A Trainer whose `methods` note their arguments in `calls` and go on."""

    def noting(name):
        def method(self, *args, **kwargs):
            calls.append((name, len(args), sorted(kwargs)))
            return getattr(Trainer, name)(self, *args, **kwargs)

        return method

    calls = []
    return type("Spying", (Trainer,), {name: noting(name) for name in methods}), calls


# Override points: the loss ----------------------------------------------------------------------------------------


class GuidesTrainer(Trainer):
    """The guide's own, but for the import of torch that it forgets and for the number of labels."""

    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.get("logits")
        loss_fct = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], device=logits.device))
        loss = loss_fct(logits.view(-1, 3), labels.view(-1))
        return (loss, outputs) if return_outputs else loss


def test_the_guides_compute_loss_trains_evaluates_and_predicts(make_trainer, make_rows):
    given = {
        "train_dataset": make_rows(40),
        "eval_dataset": make_rows(10, seed=1),
        "compute_metrics": lambda prediction: {"rows": len(prediction.predictions)},
    }
    trainer = make_trainer(GuidesTrainer, given=given, eval_strategy="epoch", learning_rate=0.1)
    trainer.train()
    metrics = trainer.evaluate()
    x, labels = (torch.stack([row[key] for row in make_rows(10, seed=1)]) for key in ("x", "labels"))
    with torch.no_grad():
        logits = trainer.model(x)["logits"]
    batches = zip(logits.split(8), labels.split(8), strict=True)
    weighted = [
        (functional.cross_entropy(*batch, weight=torch.tensor([1.0, 2.0, 3.0])).item(), len(batch[0]))
        for batch in batches
    ]
    assert metrics["eval_loss"] == pytest.approx(sum(loss * rows for loss, rows in weighted) / 10)
    assert metrics["eval_rows"] == 10
    output = trainer.predict(make_rows(10, seed=1))
    torch.testing.assert_close(torch.from_numpy(output.predictions), logits)
    assert output.label_ids.tolist() == labels.tolist()


@pytest.mark.parametrize("way", ["mean", "sum over the count", "sum over its item", "ignored"])
def test_compute_loss_may_take_the_number_of_targets_and_use_it_or_not(make_trainer, way):
    class Counting(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            x, labels = inputs
            outputs = model(x)
            if num_items_in_batch is None or way in ("mean", "ignored"):
                loss = functional.cross_entropy(outputs["logits"], labels)
            else:
                count = num_items_in_batch if way == "sum over the count" else num_items_in_batch.item()
                loss = functional.cross_entropy(outputs["logits"], labels, reduction="sum") / count
            counts.append(None if num_items_in_batch is None else f"{num_items_in_batch}")
            return (loss, outputs) if return_outputs else loss

    counts = []
    options = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 7, "optim": "sgd", "learning_rate": 0.1}
    trainer, own = make_trainer(Counting, **options), make_trainer(**options)
    trainer.train()
    own.train()
    assert len(counts) == 6  # 40 rows by 7
    for mine, models in zip(trainer.model.parameters(), own.model.parameters(), strict=True):
        assert torch.allclose(mine, models, atol=1e-6)


def test_a_loss_function_is_called_with_outputs_labels_and_count(make_trainer):
    def loss_of(outputs, labels, num_items_in_batch):
        seen.append((sorted(outputs), labels.shape, num_items_in_batch is None))
        return functional.cross_entropy(outputs["logits"], labels)

    seen = []
    trainer, own = make_trainer(given={"compute_loss_func": loss_of}), make_trainer()
    trainer.train()
    own.train()
    assert seen == [(["logits"], (4,), False)] * 10
    assert weights(trainer.model) == weights(own.model)


def test_training_step_is_called_for_every_micro_batch(make_trainer):
    class Stepping(Trainer):
        def training_step(self, model, inputs):
            seen.append((model is self.model_wrapped, len(inputs[0])))
            return super().training_step(model, inputs)

    seen = []
    trainer, own = make_trainer(Stepping, gradient_accumulation_steps=2), make_trainer(gradient_accumulation_steps=2)
    trainer.train()
    own.train()
    assert seen == [(True, 4)] * 10
    assert weights(trainer.model) == weights(own.model)


def test_prediction_step_is_called_with_the_guides_arguments(make_trainer, make_data):
    class Predicting(Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            seen.append((model.training, prediction_loss_only, ignore_keys, torch.is_grad_enabled()))
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return loss, None if logits is None else logits + 1, labels

    seen = []
    trainer, plain = make_trainer(Predicting), make_trainer()
    predictions = trainer.predict(make_data(9)).predictions
    assert np.array_equal(predictions, plain.predict(make_data(9)).predictions + 1)
    trainer.evaluate(make_data(3), ignore_keys=["hidden"])
    assert seen == [(False, False, [], False)] * 2 + [(False, True, ["hidden"], False)]
    assert trainer.model.training


# Override points: the optimizer -----------------------------------------------------------------------------------


def test_create_optimizer_and_scheduler_is_called_with_the_number_of_updates(make_trainer):
    class Plain(Trainer):
        def create_optimizer_and_scheduler(self, num_training_steps):
            seen.append(num_training_steps)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    seen = []
    trainer = make_trainer(Plain, num_train_epochs=2)
    trainer.train()
    assert seen == [20]
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (trainer.lr_scheduler, trainer.optimizer.param_groups[0]["lr"]) == (None, 0.1)


def test_create_optimizer_is_called_and_our_schedule_goes_with_it(make_trainer):
    class Plain(Trainer):
        def create_optimizer(self):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    trainer = make_trainer(Plain)
    trainer.train()
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0  # at the end of the linear schedule


def test_what_create_optimizer_and_create_scheduler_return_is_taken(make_trainer):
    class Returning(Trainer):
        def create_optimizer(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.1)

        def create_scheduler(self, num_training_steps, optimizer=None):
            seen.append((num_training_steps, type(optimizer)))
            return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    seen = []
    trainer = make_trainer(Returning, max_steps=3)
    trainer.train()
    assert seen == [(3, torch.optim.SGD)]
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1 / 8


def test_an_optimizer_and_a_scheduler_that_are_passed_are_used(make_trainer, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer = make_trainer(given={"model": model, "optimizers": (optimizer, scheduler)}, max_steps=2)
    trainer.train()
    assert (trainer.optimizer, trainer.lr_scheduler) == (optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.1 / 4


def test_an_optimizer_that_is_set_before_training_is_used(make_trainer):
    trainer = make_trainer()
    trainer.optimizer = own = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.train()
    assert trainer.optimizer is own
    trainer.train()
    assert trainer.optimizer is own


def test_each_run_has_an_optimizer_and_a_schedule_of_its_own(make_trainer):
    trainer = make_trainer(learning_rate=0.1)
    trainer.train()
    first = trainer.optimizer, trainer.lr_scheduler
    trainer.train()
    assert trainer.optimizer is not first[0]
    assert trainer.lr_scheduler is not first[1]


def test_a_plateau_scheduler_of_the_user_is_stepped_with_the_metric(make_trainer, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
    )
    given = {"model": model, "optimizers": (optimizer, plateau)}
    make_trainer(given=given, num_train_epochs=3, eval_strategy="epoch").train()
    assert optimizer.param_groups[0]["lr"] == 0.1 / 4  # the first evaluation is the best there was


def test_gradients_of_before_are_no_part_of_the_run(make_trainer):
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    trainer, clean = make_trainer(**options), make_trainer(**options)
    sum(parameter.sum() for parameter in trainer.model.parameters()).backward()
    trainer.train()
    clean.train()
    assert weights(trainer.model) == weights(clean.model)


# Override points: data, log, evaluate, predict --------------------------------------------------------------------


def test_a_users_own_loaders_are_read(make_trainer, make_data):
    class Loading(Trainer):
        def get_train_dataloader(self):
            return DataLoader(make_data(6), batch_size=2, shuffle=True)

        def get_eval_dataloader(self, eval_dataset=None):
            seen.append(eval_dataset)
            return DataLoader(make_data(5), batch_size=2)

        def get_test_dataloader(self, test_dataset):
            return DataLoader(test_dataset, batch_size=2)

    seen = []
    trainer = make_trainer(Loading, given={"train_dataset": None, "eval_dataset": None}, eval_strategy="epoch")
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_samples_seen, seen) == (3, 6, [None])
    assert len(trainer.predict(make_data(7)).predictions) == 7


def test_the_order_of_a_users_own_loader_follows_from_the_seed_for_data(make_trainer, make_data):
    class Loading(Trainer):
        def get_train_dataloader(self):
            return DataLoader(make_data(20), batch_size=4, shuffle=True)

    def trained(**seeds):
        trainer = make_trainer(Loading, optim="sgd", learning_rate=0.1, **seeds)
        trainer.train()
        return weights(trainer.model)

    assert trained(data_seed=0, seed=1) == trained(data_seed=0, seed=2)
    assert trained(data_seed=0, seed=1) != trained(data_seed=3, seed=1)


def test_log_is_called_for_every_row(make_trainer):
    class Logging(Trainer):
        def log(self, logs):
            seen.append(sorted(logs))
            super().log({**logs, "mine": 1})

    seen = []
    trainer = make_trainer(Logging, eval_strategy="epoch")
    trainer.train()
    assert seen == [
        ["eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"],
        ["train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"],
    ]
    assert [row["mine"] for row in trainer.state.log_history] == [1, 1]


def test_log_adds_epoch_and_step_and_leaves_the_row_that_it_got_alone(make_trainer):
    trainer, row = make_trainer(), {"loss": torch.tensor(1.5), "n": np.int64(3), "v": np.array([1, 2])}
    trainer.log(row)
    assert sorted(row) == ["loss", "n", "v"]
    assert trainer.state.log_history == [{"loss": 1.5, "n": 3, "v": [1, 2], "epoch": 0.0, "step": 0}]
    assert [type(value) for value in trainer.state.log_history[0].values()] == [float, int, list, float, int]


def test_evaluate_is_called_by_the_loop(make_trainer):
    class Evaluating(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            seen.append((eval_dataset, ignore_keys, metric_key_prefix))
            return {**super().evaluate(eval_dataset, ignore_keys, metric_key_prefix), "eval_mine": 0.5}

    seen = []
    trainer = make_trainer(
        Evaluating, eval_strategy="epoch", metric_for_best_model="mine", greater_is_better=True, num_train_epochs=2
    )
    trainer.train()
    assert seen == [(None, None, "eval")] * 2
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.5, 10)


def test_evaluate_gives_the_guides_keys_and_logs_them(make_trainer):
    trainer = make_trainer(given={"compute_metrics": lambda prediction: {"accuracy": 0.5, "eval_f1": 0.25}})
    metrics = trainer.evaluate()
    keys = ["eval_loss", "eval_accuracy", "eval_f1"]
    speeds = ["eval_runtime", "eval_samples_per_second", "eval_steps_per_second"]
    assert list(metrics) == [*keys, *speeds, "epoch"]
    assert trainer.state.log_history == [{**metrics, "step": 0}]


def test_predict_gives_test_metrics_and_logs_nothing(make_trainer, make_data):
    trainer = make_trainer(given={"compute_metrics": lambda prediction: {"accuracy": 0.5}})
    output = trainer.predict(make_data(9))
    assert list(output.metrics) == [
        *["test_loss", "test_accuracy", "test_runtime", "test_samples_per_second", "test_steps_per_second"]
    ]
    assert trainer.state.log_history == []


def test_several_evaluation_datasets_are_evaluated_by_name(make_trainer, make_data, recorder):
    noting = recorder("on_evaluate")
    datasets = {"near": make_data(4, seed=1), "far": make_data(4, seed=2)}
    trainer = make_trainer(given={"eval_dataset": datasets, "plugins": [noting]}, eval_strategy="epoch")
    trainer.train()
    losses = [[key for key in row if key.endswith("loss")] for row in trainer.state.log_history]
    assert losses == [["eval_near_loss"], ["eval_far_loss"], ["train_loss"]]
    assert noting.heard == ["on_evaluate"] * 2
    alone = trainer.evaluate("far")
    assert alone["eval_loss"] == trainer.evaluate()["eval_far_loss"] == trainer.evaluate(datasets["far"])["eval_loss"]


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("get_train_dataloader", [("get_train_dataloader", 0, [])]),
        ("get_eval_dataloader", [("get_eval_dataloader", 1, [])]),
        ("create_optimizer_and_scheduler", [("create_optimizer_and_scheduler", 1, [])]),
        ("create_optimizer", [("create_optimizer", 0, [])]),
        ("create_scheduler", [("create_scheduler", 2, [])]),
        ("evaluate", [("evaluate", 0, [])]),
        ("evaluation_loop", [("evaluation_loop", 2, ["ignore_keys", "metric_key_prefix", "prediction_loss_only"])]),
        ("log", [("log", 1, [])] * 2),
    ],
)
def test_an_override_point_is_called_once_where_the_guide_says(make_trainer, method, calls):
    kind, seen = spying(method)
    make_trainer(kind, eval_strategy="epoch").train()
    assert seen == calls


# The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes_trial", [False, True])
def test_model_init_makes_the_model_anew_for_every_run(make_trainer, make_model, takes_trial):
    def with_trial(trial):
        seen.append(trial)
        return without()

    def without():
        return type(make_model())()

    seen = []
    trainer = make_trainer(given={"model_init": with_trial if takes_trial else without}, learning_rate=0.1)
    fresh = weights(trainer.model)
    first = trainer.train(), weights(trainer.model)
    second = trainer.train(), weights(trainer.model)
    assert fresh != first[1] == second[1]
    assert first[0].training_loss == second[0].training_loss
    assert seen == ([None] * 3 if takes_trial else [])


def test_runs_of_one_seed_are_equal_to_the_bit_whatever_the_caller_drew_before(make_trainer):
    def trained(seed):
        torch.rand(seed)
        trainer = make_trainer(seed=7, learning_rate=0.1)
        trainer.train()
        return weights(trainer.model)

    assert trained(1) == trained(2)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return {"loss": self.head(self.embedding(x)).square().mean()}


def test_a_model_with_tied_weights_is_saved_once_and_comes_back_tied(make_trainer, make_model, tmp_path):
    trainer = make_trainer(given={"model": make_model(Tied)})
    trainer.save_model(tmp_path / "saved")
    assert len(load_file(tmp_path / "saved" / "model.safetensors")) == 1
    other = Tied()
    load_model(other, tmp_path / "saved" / "model.safetensors")
    assert torch.equal(other.embedding.weight, trainer.model.embedding.weight)
    assert other.head.weight is other.embedding.weight


def test_save_model_writes_into_the_output_folder_with_the_processing_class(make_trainer, tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.txt").write_text("mine")

    trainer = make_trainer(given={"tokenizer": Tokenizer()})
    trainer.save_model()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.safetensors", "tokenizer.txt"]
    assert sorted(load_file(tmp_path / "run" / "model.safetensors")) == sorted(trainer.model.state_dict())


def test_tokenizer_and_processing_class_are_one_thing(make_trainer):
    tokenizer = object()
    for name in ("tokenizer", "processing_class"):
        trainer = make_trainer(given={name: tokenizer})
        assert (trainer.tokenizer, trainer.processing_class) == (tokenizer, tokenizer)
    with pytest.raises(SettingsError) as caught:
        make_trainer(given={"tokenizer": tokenizer, "processing_class": tokenizer})
    assert caught.value.problems == ["processing_class: is tokenizer by its newer name. Pass one of the two."]


def test_a_tokenizer_pads_when_there_is_no_collator(make_trainer, make_model):
    class Tokenizer:
        def pad(self, samples, padding, return_tensors):
            longest = max(len(sample["x"]) for sample in samples)
            rows = [[*sample["x"], *[0] * (longest - len(sample["x"]))] for sample in samples]
            return {"x": torch.tensor(rows)}

    rows = [{"x": [1, 2]}, {"x": [3]}, {"x": [4, 1, 2]}]
    trainer = make_trainer(given={"model": make_model(Tied), "tokenizer": Tokenizer(), "train_dataset": rows})
    trainer.train()
    assert trainer.state.num_samples_seen == 3


# What a run gives -------------------------------------------------------------------------------------------------


def test_train_gives_updates_loss_and_metrics(make_trainer):
    trainer = make_trainer(num_train_epochs=2)
    output = trainer.train()
    assert output.global_step == 20
    assert output.training_loss == output.metrics["train_loss"] == trainer.state.log_history[-1]["train_loss"]
    assert output.metrics["train_runtime"] > 0
    assert output.metrics["epoch"] == trainer.state.epoch > 0
    assert (trainer.outcome, trainer.is_in_train, trainer.state.epoch) == ("completed", False, 2.0)


def test_the_settings_given_as_the_guide_does_are_the_defaults(make_model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "logging,console,checkpointing")
    trainer = Trainer(make_model())
    assert trainer.args == TrainingArguments()
    assert list(tmp_path.iterdir()) == []


def test_the_positions_of_the_arguments_are_the_guides(make_args, make_model, make_data):
    def metrics(prediction):
        return {}

    given = (make_model(), make_args(), list, make_data(4), make_data(3), "tokenizer", None, metrics, [], (None, None))
    trainer = Trainer(*given, min)
    assert (trainer.model, trainer.args, trainer.data_collator) == given[:3]
    assert (trainer.train_dataset, trainer.eval_dataset, trainer.tokenizer) == given[3:6]
    assert (trainer.compute_metrics, trainer.preprocess_logits_for_metrics) == (metrics, min)


# Nothing process-wide ---------------------------------------------------------------------------------------------


def process_wide():
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "levels": {name: logging.getLogger(name).level for name in ("", "trainer_core", "transformers", "accelerate")},
        "handlers": [list(logging.getLogger(name).handlers) for name in ("", "trainer_core")],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, warnings.showwarning, sys.stdout, sys.stderr),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "folder": os.getcwd(),
    }


def test_a_constructor_changes_nothing_in_the_process(make_trainer, make_model):
    before = process_wide()
    make_trainer(given={"model_init": type(make_model())}, seed=3, full_determinism=True)
    assert process_wide() == before


@pytest.mark.parametrize("options", [{}, {"full_determinism": True}, {"eval_strategy": "epoch", "tf32": True}], ids=str)
def test_a_run_puts_back_all_that_it_changes_in_the_process(make_trainer, options):
    make_trainer(max_steps=1).train()  # Accelerate's own state is made once in a process
    before = process_wide()
    trainer = make_trainer(**options)
    trainer.train()
    trainer.evaluate()
    assert process_wide() == before


def test_a_whole_run_in_a_process_of_its_own_leaves_its_environment_and_loggers_alone():
    code = """
import logging, os, signal
import torch
from torch.utils.data import TensorDataset
import tempfile

def state():
    levels = {name: logger.level for name, logger in logging.Logger.manager.loggerDict.items()
              if isinstance(logger, logging.Logger)}
    return dict(os.environ), logging.root.level, len(logging.root.handlers), signal.getsignal(signal.SIGINT), levels

import accelerate
before = state()
from trainer_core import Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.head(x).square().mean()}

blocked = ["logging", "console", "checkpointing", "hub_push", "replay", "tuning"]
args = TrainingArguments(tempfile.mkdtemp(), max_steps=2, block_plugins=blocked)
Trainer(Model(), args, train_dataset=TensorDataset(torch.ones(8, 4))).train()
after = state()
assert after[:4] == before[:4], [pair for pair in zip(before, after) if pair[0] != pair[1]]
assert {name: level for name, level in after[4].items() if before[4].get(name, 0) != level} == {}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_that_a_hook_starts_again_is_refused(make_trainer):
    class Again:
        def on_step_end(self, trainer):
            trainer.train()

    with pytest.raises(PluginError, match=r"^train: is running already, and a hook called it again\. Ask with request"):
        make_trainer(given={"plugins": [Again()]}).train()


def test_a_model_init_with_defaults_is_called_without_a_trial():
    def build(width=3):
        return nn.Linear(4, width)

    assert Trainer(model_init=build).model.out_features == 3


def test_a_model_init_that_raises_is_named():
    def build():
        raise RuntimeError("no weights")

    with pytest.raises(RuntimeError, match="no weights") as caught:
        Trainer(model_init=build)
    assert caught.value.__notes__ == ["raised in model_init"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"model": nn.Linear(2, 2), "optimizers": (torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), None)},
            "optimizers: the optimizer holds no parameter of the model. Make it from this model's.",
        ),
        (
            {
                "model": nn.Linear(2, 2),
                "optimizers": (
                    None,
                    torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), 1),
                ),
            },
            "optimizers: the scheduler drives another optimizer. Pass (its own optimizer, scheduler).",
        ),
        ({"model": nn.Linear}, "model: Linear is a class. Pass an instance of it, or the class as model_init."),
        ({"model_init": nn.Linear(2, 2)}, "model_init: is a model already, Linear. Pass it as model."),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments, problem):
    with pytest.raises(SettingsError) as caught:
        Trainer(**arguments)
    assert caught.value.problems == [problem]


def test_the_name_of_a_plugin_is_no_plugin():
    with pytest.raises(PluginError, match=r"^plugins: 'logging' is a name\. Turn an installed plugin on"):
        Trainer(model=nn.Linear(2, 2), plugins=["logging"])


def test_a_loss_override_that_cannot_give_outputs_is_refused():
    class Short(Trainer):
        def compute_loss(self, model, inputs):
            return model(inputs).sum()

    with pytest.raises(SettingsError, match="compute_loss: its override needs the argument `return_outputs`"):
        Short(model=nn.Linear(2, 2))


# Work that plugins do ----------------------------------------------------------------------------------------------


class Asked:
    """Answers the questions that methods of Trainer ask."""

    def push(self, trainer, commit_message, blocking, options):
        return commit_message, blocking, options

    def write_model_card(self, options):
        return options

    def search_hyperparameters(self, options):
        return options

    def replay_updates(self, options):
        return options


BLOCKED = {"block_plugins": ["console", "logging", "checkpointing", "hub_push", "replay", "tuning"]}


def test_pushing_cards_searches_and_replays_are_asked_of_plugins(make_trainer):
    trainer = make_trainer(given={"plugins": [Asked()]}, **BLOCKED)
    assert trainer.push_to_hub("first", blocking=False, tags=["a"]) == ("first", False, {"tags": ["a"]})
    assert trainer.create_model_card(language="en") == {"language": "en"}
    found = trainer.hyperparameter_search(n_trials=3, direction="maximize", sampler="s")
    assert found == {
        "hp_space": None,
        "compute_objective": None,
        "n_trials": 3,
        "direction": "maximize",
        "backend": None,
        "hp_name": None,
        "sampler": "s",
    }
    assert trainer.replay(10, steps=3) == {"from_step": 10, "steps": 3, "output_dir": None}


@pytest.mark.parametrize(
    ("method", "arguments", "distribution"),
    [
        ("push_to_hub", (), "trainer-core-hub-push"),
        ("create_model_card", (), "trainer-core-hub-push"),
        ("hyperparameter_search", (), "trainer-core-tuning"),
        ("replay", (10, 3), "trainer-core-replay"),
    ],
)
def test_a_method_whose_plugin_is_not_there_says_what_to_install(make_trainer, method, arguments, distribution):
    with pytest.raises(PluginError, match=f"{method}: no plugin does this. Install {distribution} or unblock"):
        getattr(make_trainer(**BLOCKED), method)(*arguments)


def test_an_update_shows_its_micro_batches_its_loss_and_its_norm(make_trainer):
    seen = []

    class Look:
        def on_step_begin(self, trainer):
            seen.append([len(batch) for batch in trainer.window])

        def on_step_end(self, trainer):
            loss, norm = trainer.last_loss_and_norm
            row = trainer.running.loop.meter
            seen.append((float(loss) > 0, norm is row.grad_norm, len(trainer.window)))

    trainer = make_trainer(given={"plugins": [Look()]}, gradient_accumulation_steps=2, max_steps=2)
    with pytest.raises(RuntimeError, match=r"last_loss_and_norm: there was no update yet. Ask during train\(\)."):
        _ = trainer.last_loss_and_norm
    assert trainer.window == ()
    trainer.train()
    assert [len(one) for one in seen[::2]] == [2, 2]
    assert seen[1::2] == [(True, True, 2)] * 2
    assert trainer.window == ()


def test_train_hands_a_trial_to_model_init(make_trainer, make_model):
    trials = []

    def model_init(trial):
        trials.append(trial)
        return make_model()

    make_trainer(given={"model_init": model_init}).train(trial="seventh")
    assert trials == [None, "seventh"]


def test_train_leaves_keys_out_of_the_predictions_of_its_evaluations(make_trainer, make_rows):
    shapes = []

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, labels=None):
            logits = self.layer(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits, "hidden": x}

    def compute_metrics(prediction):
        shapes.append(type(prediction.predictions).__name__)
        return {}

    rows = make_rows(8)
    given = {"model": Two(), "train_dataset": rows, "eval_dataset": rows, "compute_metrics": compute_metrics}
    trainer = make_trainer(given=given, eval_strategy="epoch")
    trainer.train(ignore_keys_for_eval=["hidden"])
    trainer.evaluate()
    assert (shapes[0], shapes[-1]) == ("ndarray", "tuple")


def test_what_is_known_of_processes_samples_and_decay(make_trainer, make_rows):
    trainer = make_trainer(given={"eval_dataset": make_rows(7)})
    assert trainer.is_world_process_zero()
    assert trainer.is_local_process_zero()
    assert trainer.num_examples(trainer.get_eval_dataloader()) == 7
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert trainer.get_decay_parameter_names(model) == ["0.weight"]


def test_what_is_known_of_rates_parameters_and_batches(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=3, weight_decay=0.1, lr_scheduler_type="constant")
    with pytest.raises(RuntimeError, match=r"get_learning_rates: there is no optimizer yet\. Call"):
        trainer.get_learning_rates()
    trainer.model.head.bias.requires_grad = False
    assert trainer.get_num_trainable_parameters() == 4 * 8 + 8 + 8 * 3
    assert trainer.get_total_train_batch_size(trainer.args) == 12
    trainer.train()
    assert trainer.get_learning_rates() == [5e-5, 5e-5]
