"""An option, given as a user gives it, and what a run then does otherwise.

Here stand the options whose own module is tested with its settings as plain values: these tests fail when a value does
not arrive there.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.toys import Classifier, Rows, arguments, named_rows, pairs, table, trained, trainer_for, weights_of
from trainer_core import Trainer, TrainingArguments, evaluate


class Looking:
    """A plugin that notes what `look(trainer)` gives when an update begins."""

    def __init__(self, look):
        self.look = look
        self.seen = []

    def on_step_begin(self, trainer):
        self.seen.append(self.look(trainer))


def seen_in_a_run(folder, look, model=None, rows=8, **options):
    plugin = Looking(look)
    trained(folder, model or Classifier(), pairs(rows), given={"plugins": [plugin]}, **options)
    return plugin.seen


class Elsewhere(str):
    """Memory of the CPU that calls itself a device of another kind: what is done for accelerators is done with it."""

    __slots__ = ()
    type = "elsewhere"


class Staying(Classifier):
    """A model that knows how it was called."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x, labels=None):
        self.batches.append(x)
        return super().forward(x, labels)


# Optimizer ----------------------------------------------------------------------------------------------------------


def test_the_settings_of_adam_reach_the_optimizer_of_the_run(tmp_path):
    options = {"learning_rate": 0.02, "weight_decay": 0.3, "adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 1e-3}
    model, data = Classifier(), pairs(12)
    ours = trained(
        tmp_path,
        model,
        data,
        **{**options, "optim": "adamw_torch", "optim_args": "amsgrad=true"},
        lr_scheduler_type="constant",
        max_grad_norm=None,
    )
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    others = [parameter for name, parameter in model.named_parameters() if "bias" not in name]
    by_hand = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.7, 0.8),
        eps=1e-3,
        amsgrad=True,
    )
    for x, labels in zip(*(tensor.split(4) for tensor in data.tensors), strict=True):
        by_hand.zero_grad()
        model(x, labels)["loss"].backward()
        by_hand.step()
    assert torch.equal(weights_of(ours.model), weights_of(model))


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [1.0, 0.75, 0.5, 0.25]),
        ({"warmup_steps": 2}, [0.0, 0.5, 1.0, 0.5]),
        ({"warmup_steps": 0.5}, [0.0, 0.5, 1.0, 0.5]),
        ({"warmup_ratio": 0.5}, [0.0, 0.5, 1.0, 0.5]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0.0, 0.5, 1.0, 1.0]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.5}}, [1.0, 0.875, 0.75, 0.625]),
    ],
    ids=str,
)
def test_the_rates_of_a_run_follow_from_the_options_of_its_schedule(tmp_path, options, rates):
    def rate(trainer):
        return trainer.optimizer.param_groups[0]["lr"]

    assert seen_in_a_run(tmp_path, rate, rows=16, learning_rate=1.0, **options) == pytest.approx(rates)


# Data ---------------------------------------------------------------------------------------------------------------


def order_of(folder, **options):
    """The rows of one epoch, in the order in which the model gets them."""
    model, (x, labels) = Staying(), table(12)
    trainer = trainer_for(folder, model, Rows(x=x, labels=labels), **{"train_sampling_strategy": "random", **options})
    trainer.train()
    return [x.tolist().index(row) for batch in trainer.model.batches for row in batch.tolist()]


def test_the_order_of_an_epoch_follows_from_seed_and_strategy(tmp_path):
    one, two = order_of(tmp_path, seed=1), order_of(tmp_path, seed=2)
    assert one != two
    assert sorted(one) == sorted(two) == order_of(tmp_path, train_sampling_strategy="sequential") == list(range(12))
    assert order_of(tmp_path, seed=2, data_seed=1) == one


def test_what_a_run_draws_follows_from_its_seed(tmp_path):
    model, data = Classifier(dropout=0.5), pairs(12)
    first, same, other = (trained(tmp_path, model, data, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights_of(first.model), weights_of(same.model))
    assert not torch.equal(weights_of(first.model), weights_of(other.model))


class Sized(torch.utils.data.Dataset):
    """Rows with two columns of lengths: by one the longest is the row 5, by the other it is the row 7."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"input_ids": [index], "length": 40 - abs(index - 5), "num_words": 40 - abs(index - 7)}


@pytest.mark.parametrize(("options", "longest"), [({}, 5), ({"length_column_name": "num_words"}, 7)])
def test_grouping_reads_lengths_in_the_column_that_is_named(tmp_path, options, longest):
    trainer = trainer_for(tmp_path, Classifier(), Sized(), train_sampling_strategy="group_by_length", **options)
    assert next(iter(trainer.get_train_dataloader().batch_sampler))[0] == longest


@pytest.mark.parametrize(("removed", "keys"), [(True, {"x", "labels"}), (False, {"x", "labels", "note"})])
def test_columns_that_the_model_does_not_take_are_removed_unless_they_are_to_stay(tmp_path, removed, keys):
    x, labels = table(4)
    trainer = trainer_for(tmp_path, Classifier(), Rows(x=x, labels=labels, note=labels), remove_unused_columns=removed)
    assert next(iter(trainer.get_train_dataloader())).keys() == keys


def test_a_loader_has_the_workers_and_the_memory_of_the_options(tmp_path):
    options = {
        "dataloader_num_workers": 2,
        "dataloader_prefetch_factor": 5,
        "dataloader_persistent_workers": True,
        "dataloader_multiprocessing_context": "forkserver",
    }
    loader = trainer_for(tmp_path, Classifier(), pairs(8), **options).get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 5, True)
    assert loader.multiprocessing_context.get_start_method() == "forkserver"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("pins", [True, False])
def test_memory_is_pinned_for_an_accelerator_unless_it_is_not_wanted(tmp_path, pins):
    trainer = trainer_for(tmp_path, Classifier(), pairs(8), dataloader_pin_memory=pins)
    assert not trainer.get_train_dataloader().pin_memory
    trainer.ranks.device = Elsewhere("cpu")
    assert trainer.get_train_dataloader().pin_memory is pins


# Evaluation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches", "moved"), [(2, [2, 2, 1]), (None, [5])])
def test_predictions_of_so_many_batches_wait_on_an_accelerator(tmp_path, monkeypatch, batches, moved):
    waiting = []

    class Noting(evaluate.Collector):
        def flush(self):
            waiting.append(len(self.waiting))
            super().flush()

    monkeypatch.setattr(evaluate, "Collector", Noting)
    options = {"eval_accumulation_steps": batches, "per_device_eval_batch_size": 4}
    trainer = trainer_for(tmp_path, Classifier(), **options, dataloader_pin_memory=False)
    trainer.ranks.device = Elsewhere("cpu")
    trainer.predict(Rows(x=table(18)[0]))
    assert [number for number in waiting if number] == moved


@pytest.mark.parametrize(("greater", "best"), [(True, 0.5), (False, 0.1)])
def test_the_best_value_of_a_run_is_that_of_its_metric_in_its_direction(tmp_path, greater, best):
    def charm(prediction):
        return {"charm": [9.0, 0.3, 0.5, 0.1][trainer.state.global_step]}

    given = {"compute_metrics": charm, "eval_dataset": named_rows(4)}
    options = {"eval_strategy": "epoch", "num_train_epochs": 3, "metric_for_best_model": "charm"}
    trainer = trainer_for(tmp_path, Classifier(), pairs(4), given=given, greater_is_better=greater, **options)
    trainer.train()
    assert trainer.state.best_metric == best


# Precision and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_on_or_off_during_a_run(tmp_path, wanted):
    def setting(trainer):
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = setting(None)
    assert set(seen_in_a_run(tmp_path, setting, tf32=wanted)) == {(wanted, wanted)}
    assert setting(None) == before


def test_cached_memory_of_an_accelerator_is_released_every_so_many_steps(tmp_path, monkeypatch):
    released = []
    trainer = trainer_for(
        tmp_path, Classifier(), pairs(24), torch_empty_cache_steps=2, optim="sgd", dataloader_pin_memory=False
    )
    trainer.ranks.device = Elsewhere("cpu")
    module = SimpleNamespace(
        empty_cache=lambda: released.append(trainer.state.global_step + 1), get_rng_state=lambda: None
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    trainer.train()
    assert released == [2, 4, 6]


def test_options_of_activation_checkpointing_reach_torch(tmp_path):
    asked = []

    def contexts():
        asked.append("context")
        return torch.autograd.graph.save_on_cpu(), torch.autograd.graph.save_on_cpu()

    options = {"activation_checkpointing_kwargs": {"context_fn": contexts}, "activation_checkpointing": True}
    trained(tmp_path, Classifier(), pairs(8), **options)
    assert len(asked) == 2 * 2  # updates × layers with parameters


@pytest.mark.slow
def test_a_model_is_compiled_by_the_backend_in_the_mode_that_are_named(tmp_path):
    compiled = []

    def backend(graph, inputs, mode=None):
        compiled.append(mode)
        return graph.forward

    torch._dynamo.register_backend(backend, name="noting")
    try:
        for options in ({}, {"torch_compile": True}, {"torch_compile_mode": "max-autotune"}):
            names = {"torch_compile_backend": "noting"} if options else {}
            trained(tmp_path, Classifier(), pairs(4), **names, **options)
            torch._dynamo.reset()
    finally:
        torch._dynamo.backends.registry._COMPILER_FNS.pop("noting")
    assert compiled == [None, "max-autotune"]


# Where and for whom -------------------------------------------------------------------------------------------------


def test_what_a_run_writes_lies_in_its_folder(tmp_path):
    args = arguments(tmp_path / "elsewhere").replace(output_dir=tmp_path / "here")
    trainer = Trainer(Classifier(), args, train_dataset=pairs(4))
    trainer.train()
    trainer.save_model()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert {path.name for path in (tmp_path / "here").glob("[!.]*")} == {"journal.jsonl", "model.safetensors"}


def script(folder, *line):
    """A script as those that the flags were made for."""
    args = TrainingArguments.from_command_line(["--output_dir", str(folder), *line])
    done = []
    trainer = Trainer(Classifier(), args, train_dataset=pairs(8), eval_dataset=named_rows(4))
    if args.do_train:
        done.append(trainer.train().global_step)
    if args.do_eval:
        done += [name for name in trainer.evaluate() if name == "eval_loss"]
    if args.do_predict:
        done.append(trainer.predict(named_rows(4)).predictions.shape)
    return done


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ([], []),
        (["--do_train"], [3]),
        (["--do_eval"], ["eval_loss"]),
        (["--eval_strategy", "epoch"], ["eval_loss"]),
        (["--do_predict"], [(4, 3)]),
        (["--do_train", "--do_eval", "--do_predict"], [3, "eval_loss", (4, 3)]),
    ],
    ids=str,
)
def test_a_script_does_what_its_flags_say(tmp_path, monkeypatch, line, done):
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "logging,checkpointing,console,hub_push,replay,tuning")
    assert script(tmp_path, *line) == done
