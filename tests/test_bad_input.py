"""Each kind of bad input gets one clear error of ours before training, or works."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from trainer_core import CheckpointError, DataError, ModelError, PluginError, SettingsError, Trainer, TrainingArguments
from trainer_core.errors import TrainerCoreError
from trainer_core.settings.discovery import installed_names

BLOCKED = sorted(installed_names())


def problems_of(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments("x", block_plugins=BLOCKED, **options)
    return caught.value.problems


def refused(make, **given):
    with pytest.raises(SettingsError) as caught:
        make(given=given)
    return caught.value.problems


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("per_device_train_batch_size", 0, "must be at least 1, got 0 (from keyword). Use 1 or more."),
        ("per_device_eval_batch_size", -3, "must be at least 1, got -3 (from keyword). Use 1 or more."),
        ("gradient_accumulation_steps", 0, "must be at least 1, got 0 (from keyword). Use 1 or more."),
        ("num_train_epochs", 0, "must be greater than 0, got 0 (from keyword). Use a value above 0."),
        ("num_train_epochs", -1.0, "must be greater than 0, got -1.0 (from keyword). Use a value above 0."),
        (
            "max_steps",
            0,
            "must be -1 or at least 1, got 0 (from keyword). Use -1 to train for num_train_epochs.",
        ),
        ("learning_rate", -1e-3, "must be at least 0, got -0.001 (from keyword). Use 0 or more."),
        ("weight_decay", -0.1, "must be at least 0, got -0.1 (from keyword). Use 0 or more."),
        ("max_grad_norm", -1.0, "must be at least 0, got -1.0 (from keyword). Use 0 or more."),
        ("adam_beta1", 1.0, "must be less than 1, got 1.0 (from keyword). Use a value below 1."),
        ("warmup_ratio", 1.5, "must be at most 1, got 1.5 (from keyword). Use 1 or less."),
        ("eval_steps", 0, "must be greater than 0, got 0 (from keyword). Use a value above 0."),
        ("eval_delay", -1, "must be at least 0, got -1 (from keyword). Use 0 or more."),
        ("dataloader_num_workers", -1, "must be at least 0, got -1 (from keyword). Use 0 or more."),
        ("seed", -1, "must be at least 0, got -1 (from keyword). Use 0 or more."),
        ("output_dir", "", "must not be empty, got '' (from keyword). Give a value."),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_with_its_name_value_source_and_remedy(name, value, problem):
    options = {} if name == "output_dir" else {"output_dir": "x"}
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**{**options, name: value}, block_plugins=BLOCKED)
    assert caught.value.problems == [f"{name}: {problem}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_device_train_batch_size", "8"),
        ("per_device_train_batch_size", 8.5),
        ("per_device_train_batch_size", True),
        ("learning_rate", "1e-3"),
        ("learning_rate", None),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("bf16", "yes"),
        ("bf16", 1),
        ("eval_strategy", "never"),
        ("eval_strategy", 5),
        ("optim", "adam"),
        ("label_names", "labels"),
        ("seed", 1.0),
        ("output_dir", 7),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_name_and_value(name, value):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**{"output_dir": "x", "block_plugins": BLOCKED, name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert f"got {value!r} (from keyword)." in problem
    assert problem.endswith((".", "?"))


def test_all_mistakes_are_told_at_once():
    problems = problems_of(learning_rate=-1, per_device_train_batch_size=0, evaluation_stratgy="epoch", bf16="yes")
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "bf16",
        "evaluation_stratgy",
        "learning_rate",
        "per_device_train_batch_size",
    ]


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("evaluation_stratgy", "Did you mean 'evaluation_strategy'?"),
        ("hub_stratgy", "Did you mean 'hub_strategy'?"),
        ("learning_rte", "Did you mean 'learning_rate'?"),
        ("num_epochs", "Did you mean 'num_train_epochs'?"),
        ("callback", "Pass it as Trainer(callbacks=...)."),
        ("model", "Pass it as Trainer(model=...)."),
        ("xyzzy", "Look at `--help` for all options."),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_the_right_one(name, hint):
    (problem,) = problems_of(**{name: "epoch"})
    assert problem.startswith(f"{name}: is ")
    assert problem.endswith(hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian_dataset", "Did you mean 'train_dataset'?"),
        ("metrics", "Did you mean 'compute_metrics'?"),
        ("learning_rate", "is a setting, not an argument of Trainer. Pass it to TrainingArguments."),
        ("optimizer_cls_and_kwargs", "Pass optimizers=(optimizer, None), or override create_optimizer."),
    ],
)
def test_an_argument_of_trainer_that_does_not_exist_is_refused_with_the_right_one(make_trainer, name, hint):
    (problem,) = refused(make_trainer, **{name: 1})
    assert problem.startswith(f"{name}: is ")
    assert hint in problem


def test_a_misspelt_argument_of_a_subclass_is_answered_with_the_right_one(make_args, make_model):
    class Own(Trainer):
        def __init__(self, *args, mine=1, **kwargs):
            super().__init__(*args, **kwargs)

    with pytest.raises(SettingsError) as caught:
        Own(make_model(), make_args(), trian_dataset=[])
    (problem,) = caught.value.problems
    assert "Did you mean 'train_dataset'?" in problem


def test_an_argument_of_train_that_does_not_exist_is_refused(make_trainer):
    with pytest.raises(SettingsError) as caught:
        make_trainer().train(resume_from_chekpoint=True)
    assert caught.value.problems == [
        "train: unknown argument 'resume_from_chekpoint'. Did you mean 'resume_from_checkpoint'? "
        "It takes resume_from_checkpoint, trial, ignore_keys_for_eval."
    ]


# The objects of the constructor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"model": None},
            "model: is missing. Pass a torch.nn.Module as model, or a function that makes one as model_init.",
        ),
        ({"model": "bert"}, "model: must be a torch.nn.Module, got str. Pass the module itself."),
        ({"model": nn.Linear}, "model: Linear is a class. Pass an instance of it, or the class as model_init."),
        (
            {"args": {"learning_rate": 1}},
            "args: must be trainer_core's TrainingArguments, got builtins.dict. Import it from trainer_core.",
        ),
        ({"compute_metrics": "accuracy"}, "compute_metrics: must be a function or a metric, got str. Pass a function."),
        ({"data_collator": 3}, "data_collator: must be callable, got int. Pass a function."),
        (
            {"optimizers": "adam"},
            "optimizers: must be (optimizer, scheduler). Pass (optimizer, None) to have the scheduler made.",
        ),
        (
            {"optimizers": ("adam", None)},
            "optimizers: the first must be a torch optimizer, got str. Pass one, or None.",
        ),
        ({"callbacks": print}, "callbacks: must be a list, got builtin_function_or_method. Pass callbacks=[...]."),
        ({"plugins": 3}, "plugins: must be a list, got int. Pass plugins=[...]."),
    ],
    ids=str,
)
def test_an_object_of_another_kind_is_refused_by_name(make_trainer, given, problem):
    assert refused(make_trainer, **given) == [problem]


def test_all_mistakes_of_a_constructor_are_told_at_once(make_trainer):
    problems = refused(make_trainer, model=None, compute_metrics=1, trian_dataset=[])
    assert [problem.split(":")[0] for problem in problems] == ["trian_dataset", "model", "compute_metrics"]


def test_model_and_model_init_contradict_each_other(make_args, make_model):
    with pytest.raises(SettingsError) as caught:
        Trainer(make_model(), make_args(), model_init=make_model)
    assert caught.value.problems == ["model_init: contradicts model. Pass one of the two."]


def test_a_model_init_that_gives_no_model_is_refused(make_trainer):
    with pytest.raises(ModelError) as caught:
        make_trainer(given={"model_init": lambda: None})
    assert str(caught.value) == "model_init: must return a torch.nn.Module, got NoneType. Return the model."


def test_a_plugin_given_as_a_class_is_refused(make_trainer, recorder):
    with pytest.raises(PluginError, match=r"^plugins: Recorder is a class\. Pass an instance, made with its settings"):
        make_trainer(given={"plugins": [recorder]})


@pytest.mark.parametrize("options", [{"eval_strategy": "epoch"}, {"eval_on_start": True}], ids=str)
def test_an_evaluation_without_a_dataset_is_refused_by_the_constructor(make_trainer, options):
    with pytest.raises(SettingsError) as caught:
        make_trainer(given={"eval_dataset": None}, **options)
    (problem,) = caught.value.problems
    assert problem.startswith("eval_dataset: is needed, ")


def test_evaluate_without_a_dataset_is_refused(make_trainer):
    with pytest.raises(SettingsError) as caught:
        make_trainer(given={"eval_dataset": None}).evaluate()
    assert caught.value.problems == ["eval_dataset: is needed to evaluate. Pass one to Trainer or to evaluate()."]


def test_an_evaluation_dataset_that_is_unknown_by_name_is_refused_with_the_right_one(make_trainer, make_data):
    trainer = make_trainer(given={"eval_dataset": {"validation": make_data(2)}})
    with pytest.raises(SettingsError, match=r"there is none called 'valdation'\. Did you mean 'validation'\?"):
        trainer.evaluate("valdation")


# The data ---------------------------------------------------------------------------------------------------------


def untouched(trainer, kind, *match):
    """The error of a run that is refused before an update; asserts that nothing was trained and all is torn down."""
    heard = []
    trainer.add_callback(type("Torn", (), {"on_teardown": lambda self: heard.append("torn")})())
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind) as caught:
        trainer.train()
    assert isinstance(caught.value, TrainerCoreError)
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert (trainer.state.global_step, trainer.outcome, heard) == (0, "failed", ["torn"])
    assert signal.getsignal(signal.SIGINT) == handler
    return str(caught.value)


def test_training_without_data_is_refused(make_trainer):
    trainer = make_trainer(given={"train_dataset": None})
    problem = "1 setting is wrong:\n  train_dataset: is needed to train. Pass one to Trainer."
    assert untouched(trainer, SettingsError) == problem
    with pytest.raises(SettingsError, match="train_dataset: is needed to train"):
        trainer.plan()


@pytest.mark.parametrize("empty", [[], "tensors"])
def test_an_empty_dataset_is_refused(make_trainer, make_data, empty):
    data = make_data(0) if empty == "tensors" else empty
    assert "train_dataset: " in untouched(make_trainer(given={"train_dataset": data}), TrainerCoreError)


def test_an_empty_evaluation_dataset_is_refused_before_training(make_trainer, make_data):
    trainer = make_trainer(given={"eval_dataset": make_data(0)}, eval_strategy="epoch")
    assert "eval_dataset: has no rows, got length 0." in untouched(trainer, SettingsError)


def test_dropping_the_only_batch_is_refused(make_trainer, make_data):
    trainer = make_trainer(given={"train_dataset": make_data(3)}, dataloader_drop_last=True)
    assert "dataloader_drop_last" in untouched(trainer, TrainerCoreError)


@pytest.mark.parametrize("thing", [7, object()], ids=["number", "object"])
def test_what_is_no_dataset_is_refused(make_trainer, thing):
    message = untouched(make_trainer(given={"train_dataset": thing}), DataError)
    assert message == (
        f"train_dataset: needs __getitem__ and __len__, or __iter__, got {type(thing).__name__}. "
        "Give it these methods, or make it a torch IterableDataset."
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"x": torch.ones(4), "labels": 1}] * 8)


def test_data_without_a_length_needs_the_number_of_updates(make_trainer):
    trainer = make_trainer(given={"train_dataset": Stream()})
    problem = "max_steps: is needed, the training data has no length. Set it to the updates to do."
    assert untouched(trainer, SettingsError) == f"1 setting is wrong:\n  {problem}"
    with pytest.raises(SettingsError, match="max_steps: is needed"):
        trainer.plan()


def test_columns_of_which_the_model_takes_none_are_refused(make_trainer):
    rows = [{"text": "a", "labels": 1}] * 8
    message = untouched(make_trainer(given={"train_dataset": rows}), DataError)
    assert message == (
        "dataset: no column is an input of the model, got columns ['text', 'labels'] and forward(x, labels). "
        "Rename the columns to the parameters of forward, or set remove_unused_columns=False."
    )


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, mask, labels=None):
        return {"loss": self.head(x * mask).square().mean(), "logits": x}


def test_a_batch_without_an_input_that_the_model_needs_is_refused(make_trainer, make_model, make_rows):
    given = {"model": make_model(TwoInputs), "train_dataset": make_rows(8)}
    message = untouched(make_trainer(given=given), DataError)
    assert message == (
        "batch: does not fit the model, got x, labels for forward(x, mask, labels=None): "
        "missing a required argument: 'mask'. Give the dataset or data_collator the names that forward takes."
    )


def test_a_batch_with_a_name_that_the_model_does_not_take_is_refused(make_trainer, make_rows):
    rows = [{**row, "extra": 1} for row in make_rows(8)]
    trainer = make_trainer(given={"train_dataset": rows}, remove_unused_columns=False)
    message = untouched(trainer, DataError)
    assert message == (
        "batch: does not fit the model, got x, labels, extra for forward(x, labels=None): "
        "got an unexpected keyword argument 'extra'. Give the dataset or data_collator the names that forward takes."
    )


def test_a_batch_of_too_many_parts_is_refused(make_trainer, make_data):
    data = torch.utils.data.TensorDataset(*make_data(8).tensors, torch.ones(8))
    message = untouched(make_trainer(given={"train_dataset": data}), DataError)
    assert message == (
        "batch: does not fit the model, got a tuple of 3 for forward(x, labels=None): too many positional arguments. "
        "Give the dataset or data_collator the names that forward takes."
    )


def test_an_error_of_the_models_own_is_not_taken_for_a_batch_that_does_not_fit(make_trainer, make_model):
    class Failing(TwoInputs):
        def forward(self, x, labels=None):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        make_trainer(given={"model": make_model(Failing)}).train()


def test_samples_that_do_not_stack_are_refused_with_the_key(make_trainer):
    rows = [{"x": torch.ones(4), "labels": 1}, {"x": torch.ones(3), "labels": 1}]
    assert "'x'" in untouched(make_trainer(given={"train_dataset": rows}), DataError)


# The model --------------------------------------------------------------------------------------------------------


class Giving(nn.Module):
    """A model that gives what `give(logits)` makes."""

    give = None

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        return type(self).give(self.head(x))


def giving(give):
    return type("Giving", (Giving,), {"give": staticmethod(give)})


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda logits: {"logits": logits}, "model: returned no loss, got dict with logits. "),
        (lambda logits: logits, "model: returned no loss, got a tensor of shape (4, 3). "),
        (lambda logits: (logits, logits), "model: returned no loss, got a tuple of 2. "),
        (lambda logits: None, "model: returned no loss, got NoneType. "),
        (lambda logits: {"loss": 1.5}, "loss: must be a tensor, got float. "),
        (lambda logits: {"loss": logits.square()}, "loss: must be one number, got shape (4, 3). "),
        (lambda logits: {"loss": logits.detach().mean()}, "loss: has no gradient, "),
    ],
    ids=["mapping", "tensor", "tuple", "nothing", "number", "unreduced", "detached"],
)
def test_a_model_without_a_loss_to_train_on_is_refused(make_trainer, make_model, give, message):
    told = untouched(make_trainer(given={"model": make_model(giving(give))}), ModelError)
    assert told.startswith(message)
    assert told.endswith(".")


def test_a_model_without_anything_to_train_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.model.requires_grad_(False)
    message = untouched(trainer, ModelError)
    assert message == "model: has no parameter that requires a gradient. Set requires_grad on those to train."


def test_a_metric_that_only_the_running_evaluation_lacks_ends_the_run_with_its_name(make_trainer, make_data):
    class Late(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            return {"eval_other": 1.0}

    trainer = make_trainer(Late, eval_strategy="epoch", metric_for_best_model="accuracy")
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [
        "metric_for_best_model: no evaluation gives this metric, got 'accuracy'. "
        "Evaluations give other; compute it in compute_metrics or name one of these."
    ]


@pytest.mark.parametrize("override", ["create_optimizer", "create_optimizer_and_scheduler"])
def test_an_override_that_makes_no_optimizer_is_refused(make_trainer, override):
    kind = type("Lazy", (Trainer,), {override: lambda self, *args: None})
    assert "create_optimizer: must set self.optimizer to a torch optimizer, got NoneType." in untouched(
        make_trainer(kind), SettingsError
    )


# Folders ----------------------------------------------------------------------------------------------------------


def a_file(folder):
    path = folder / "file"
    path.write_text("here")
    return path


def below_a_file(folder):
    return a_file(folder) / "run"


def not_writable(folder):
    return Path("/proc/trainer_core")


@pytest.mark.parametrize("place", [a_file, below_a_file, not_writable])
def test_an_output_folder_that_cannot_be_written_to_is_refused(make_trainer, tmp_path, place):
    folder = place(tmp_path)
    message = untouched(make_trainer(output_dir=folder), SettingsError)
    assert message.startswith(f"1 setting is wrong:\n  output_dir: cannot be written to, got {str(folder)!r} (")
    assert message.endswith("). Name a folder that is there or can be made.")


def test_an_output_folder_whose_journal_is_a_folder_is_refused(make_trainer, tmp_path):
    (tmp_path / "run" / "journal.jsonl").mkdir(parents=True)
    assert "output_dir: cannot be written to" in untouched(make_trainer(), SettingsError)


@pytest.mark.parametrize("source", [True, "checkpoint-5"])
def test_a_resume_without_a_plugin_that_reads_checkpoints_is_refused(make_trainer, source):
    trainer = make_trainer()
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=source)
    assert str(caught.value) == (
        "resume_from_checkpoint: no plugin reads checkpoints. Install trainer-core-checkpointing "
        "or unblock 'checkpointing'."
    )
    assert (trainer.state.global_step, trainer.outcome) == (0, "failed")


# Workers ----------------------------------------------------------------------------------------------------------


class Dying(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": torch.ones(4), "labels": 1}


def test_a_worker_that_dies_is_said_and_everything_is_torn_down(make_trainer):
    trainer = make_trainer(given={"train_dataset": Dying()}, dataloader_num_workers=1)
    message = untouched(trainer, DataError)
    assert message.startswith("dataloader_num_workers: a dataloader worker died, got ")
    assert message.endswith("or dataloader_num_workers=0 to see the error itself.")


class Breaking(Dying):
    def __getitem__(self, index):
        raise KeyError("mine")


def test_an_error_in_a_worker_is_the_users_with_the_place_of_its_batch(make_trainer):
    trainer = make_trainer(given={"train_dataset": Breaking()}, dataloader_num_workers=1)
    with pytest.raises(KeyError, match="mine") as caught:
        trainer.train()
    assert caught.value.__notes__[-2:] == [
        "while fetching micro-batch 0, epoch 0",
        "raised in phase STEP, after step 0",
    ]
