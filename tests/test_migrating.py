"""The page on migrating tells of every name of the original, and the code does what it says."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
from enum import Enum
from functools import cache
from pathlib import Path

import pytest

import trainer_core
from trainer_core import SettingsError, Trainer, TrainingArguments
from trainer_core.settings import names
from trainer_core.settings.discovery import installed_plugins

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")

BOTH = """
output_dir gradient_accumulation_steps num_train_epochs max_steps seed label_smoothing_factor full_determinism
neftune_noise_alpha learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type
lr_scheduler_kwargs warmup_steps optim optim_args per_device_train_batch_size per_device_eval_batch_size data_seed
dataloader_drop_last dataloader_num_workers remove_unused_columns label_names length_column_name dataloader_pin_memory
dataloader_persistent_workers auto_find_batch_size prediction_loss_only eval_accumulation_steps eval_delay eval_steps
load_best_model_at_end metric_for_best_model greater_is_better save_strategy save_steps save_total_limit
save_on_each_node save_only_model ignore_data_skip resume_from_checkpoint log_level log_level_replica log_on_each_node
logging_strategy logging_first_step logging_steps logging_nan_inf_filter run_name disable_tqdm report_to
skip_memory_metrics include_num_input_tokens_seen push_to_hub hub_model_id hub_strategy hub_token hub_private_repo
hub_always_push bf16 fp16 bf16_full_eval fp16_full_eval tf32 gradient_checkpointing gradient_checkpointing_kwargs
torch_compile torch_compile_backend torch_compile_mode local_rank ddp_backend fsdp fsdp_config deepspeed
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_timeout do_train do_eval do_predict use_cpu debug
"""
OLD = """
past_index warmup_ratio adafactor per_gpu_train_batch_size per_gpu_eval_batch_size group_by_length dispatch_batches
split_batches evaluation_strategy jit_mode_eval use_legacy_prediction_loop include_inputs_for_metrics save_safetensors
logging_dir include_tokens_per_second push_to_hub_model_id push_to_hub_organization push_to_hub_token fp16_opt_level
half_precision_backend fp16_backend torchdynamo tpu_num_cores fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap
mp_parameters overwrite_output_dir no_cuda use_mps_device use_ipex tpu_metrics_debug ray_scope
"""
NEW = """
average_tokens_across_devices use_cache torch_empty_cache_steps optim_target_modules dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy eval_strategy eval_on_start
eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics enable_jit_checkpoint
restore_callback_states_from_checkpoint project trackio_space_id trackio_bucket_id trackio_static_space_id hub_revision
activation_checkpointing activation_checkpointing_kwargs use_liger_kernel liger_kernel_config accelerator_config
parallelism_config ddp_static_graph
"""
SEQ2SEQ = """
sortish_sampler predict_with_generate generation_max_length generation_num_beams generation_config
"""
VERSIONS = {"both": {*BOTH.split()}, "4.37.2": {*OLD.split()}, "5.23": {*NEW.split()}}
SEQUENCES = {*SEQ2SEQ.split()}
"""Fields of Seq2SeqTrainingArguments, in both versions."""

TRACKIO = {"report_to": "trackio", "trackio_space_id": "me/space"}
EVALUATED = {"eval_strategy": "epoch"}
WORKERS = {"dataloader_num_workers": 1}
HUB = {"push_to_hub": True}
GIVEN = {
    "output_dir": ("runs/other",),
    "gradient_accumulation_steps": (2,),
    "num_train_epochs": (0.5,),
    "max_steps": (7,),
    "seed": (1,),
    "label_smoothing_factor": (0.1,),
    "full_determinism": (True,),
    "neftune_noise_alpha": (5.0,),
    "average_tokens_across_devices": (False,),
    "torch_empty_cache_steps": (10,),
    "learning_rate": (1e-3,),
    "weight_decay": (0.01,),
    "adam_beta1": (0.8,),
    "adam_beta2": (0.99,),
    "adam_epsilon": (1e-6,),
    "max_grad_norm": (0.5,),
    "lr_scheduler_type": ("cosine",),
    "lr_scheduler_kwargs": ({"num_cycles": 0.3}, {"lr_scheduler_type": "cosine"}),
    "warmup_ratio": (0.1,),
    "warmup_steps": (10,),
    "optim": ("sgd",),
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "adafactor": (True,),
    "per_device_train_batch_size": (2,),
    "per_device_eval_batch_size": (2,),
    "per_gpu_train_batch_size": (2,),
    "per_gpu_eval_batch_size": (2,),
    "data_seed": (1,),
    "dataloader_drop_last": (True,),
    "dataloader_num_workers": (2,),
    "remove_unused_columns": (False,),
    "label_names": (["target"],),
    "group_by_length": (True,),
    "length_column_name": ("num_words", {"train_sampling_strategy": "group_by_length"}),
    "dataloader_pin_memory": (False,),
    "dataloader_persistent_workers": (True, WORKERS),
    "auto_find_batch_size": (True,),
    "dataloader_prefetch_factor": (4, WORKERS),
    "dataloader_multiprocessing_context": ("spawn", WORKERS),
    "train_sampling_strategy": ("sequential",),
    "evaluation_strategy": ("epoch",),
    "prediction_loss_only": (True,),
    "eval_accumulation_steps": (4,),
    "eval_delay": (2, EVALUATED),
    "eval_steps": (10, {"eval_strategy": "steps"}),
    "load_best_model_at_end": (True, EVALUATED),
    "metric_for_best_model": ("accuracy", EVALUATED),
    "greater_is_better": (False, {**EVALUATED, "metric_for_best_model": "accuracy"}),
    "include_inputs_for_metrics": (True,),
    "eval_strategy": ("epoch",),
    "eval_on_start": (True,),
    "eval_do_concat_batches": (False,),
    "include_for_metrics": (["loss"],),
    "batch_eval_metrics": (True,),
    "save_strategy": ("epoch",),
    "save_steps": (100,),
    "save_total_limit": (2,),
    "save_only_model": (True,),
    "resume_from_checkpoint": (True,),
    "overwrite_output_dir": (True,),
    "log_level": ("debug",),
    "log_level_replica": ("error",),
    "log_on_each_node": (False,),
    "logging_dir": ("runs/logs", {"report_to": "tensorboard"}),
    "logging_strategy": ("epoch",),
    "logging_first_step": (True,),
    "logging_steps": (10,),
    "run_name": ("one", {"report_to": "tensorboard"}),
    "disable_tqdm": (True,),
    "report_to": (["tensorboard"],),
    "skip_memory_metrics": (False,),
    "include_tokens_per_second": (True,),
    "include_num_input_tokens_seen": ("non_padding",),
    "project": ("mine", TRACKIO),
    "trackio_space_id": ("me/space", {"report_to": "trackio"}),
    "trackio_bucket_id": ("me/bucket", TRACKIO),
    "trackio_static_space_id": ("me/static", TRACKIO),
    "push_to_hub": (True,),
    "hub_model_id": ("me/mine", HUB),
    "hub_strategy": ("end", HUB),
    "hub_token": ("hf_mine", HUB),
    "hub_private_repo": (True, HUB),
    "hub_always_push": (True, HUB),
    "push_to_hub_model_id": ("me/mine", HUB),
    "push_to_hub_organization": ("us", HUB),
    "push_to_hub_token": ("hf_mine", HUB),
    "hub_revision": ("trial", HUB),
    "bf16": (True,),
    "fp16": (True,),
    "bf16_full_eval": (True,),
    "fp16_full_eval": (True,),
    "tf32": (True,),
    "gradient_checkpointing": (True,),
    "gradient_checkpointing_kwargs": ({"use_reentrant": True}, {"gradient_checkpointing": True}),
    "torch_compile": (True,),
    "torch_compile_backend": ("eager",),
    "torch_compile_mode": ("max-autotune",),
    "activation_checkpointing": (True,),
    "activation_checkpointing_kwargs": ({"use_reentrant": True}, {"activation_checkpointing": True}),
    "ddp_backend": ("gloo",),
    "ddp_find_unused_parameters": (True,),
    "ddp_bucket_cap_mb": (50,),
    "ddp_broadcast_buffers": (False,),
    "ddp_timeout": (60,),
    "ddp_static_graph": (True,),
    "do_train": (True,),
    "do_eval": (True,),
    "do_predict": (True,),
    "no_cuda": (True,),
    "use_cpu": (True,),
}
"""A value of each accepted field that is not its default, and what it needs beside it."""


def rows_of(header):
    """Gives the rows of all tables of the page with this header, as lists of cells."""
    found, is_inside = [], False
    for line in PAGE.splitlines():
        is_inside = line == header or (is_inside and line.startswith("|"))
        if is_inside and line != header and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


FIELDS = [(cells[0].strip("` "), *cells[1:]) for cells in rows_of("| field | in | here | proved by |")]
HERE = {name: here for name, _, here, _ in FIELDS}
REFUSED = [name for name, here in HERE.items() if here.startswith("refused: ")]
ACCEPTED = [name for name in HERE if name not in REFUSED]
OTHER_NAMES = {
    name: match[1] for name, here in HERE.items() if (match := re.search(r"another name of `(\w+)`", here)) is not None
}


def given(name):
    value, *needed = GIVEN[name]
    return {**(needed[0] if needed else {}), name: value}


def plainly(value):
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


# The list is whole ------------------------------------------------------------------------------------------------


def test_there_are_118_fields_of_the_old_version_and_114_of_the_new_one():
    both, old, new = VERSIONS.values()
    assert (len(both | old), len(both | new), len(both | old | new)) == (118, 114, 146)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers' fields")
def test_the_fields_of_the_new_version_are_those_of_the_original():
    from transformers import Seq2SeqTrainingArguments as Original

    fields = {field.name for field in dataclasses.fields(Original) if field.init}
    assert fields == VERSIONS["both"] | VERSIONS["5.23"] | SEQUENCES


def test_every_field_is_told_once_with_its_version_and_nothing_else_is():
    told = sorted((name, version) for name, version, *_ in FIELDS)
    fields = {**VERSIONS, "both": VERSIONS["both"] | SEQUENCES}
    assert told == sorted((name, version) for version in fields for name in fields[version])


def test_every_field_is_accepted_or_refused():
    kinds = r"(same|another name of `\w+`|plugin `\w+`|refused: .+\.)($|; )"
    assert [name for name, here in HERE.items() if re.match(kinds, here) is None] == []
    assert sorted(ACCEPTED) == sorted(GIVEN)


# What is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_field_takes_a_value_and_reads_back(name):
    options = given(name)
    without = TrainingArguments(**{other: value for other, value in options.items() if other != name})
    args = TrainingArguments(**options)
    assert plainly(getattr(args, name)) == options[name]
    assert plainly(getattr(without, name)) != options[name]
    assert args != without


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_field_is_where_the_page_says(name):
    kind = re.match(r"(same|another name of|plugin `(\w+)`)", HERE[name])
    own = name in TrainingArguments.model_fields
    if kind[2] is not None:
        section = installed_plugins()[kind[2]].settings_type
        assert name in {*section.flat, *section.aliases, section.switch}
        assert name not in section.aliases or section.aliases[name] == OTHER_NAMES[name]
    else:
        assert own is (kind[1] == "same")
    assert (names.ALIASES[name].field if name in names.ALIASES else None) == (
        OTHER_NAMES.get(name) if kind[2] is None else None
    )


@pytest.mark.parametrize("name", [name for name, here in HERE.items() if "`True` is" in here])
def test_a_yes_of_the_original_is_the_choice_that_the_page_says(name):
    choice = ast.literal_eval(re.search(r"`True` is `(.+)`", HERE[name])[1])
    assert getattr(TrainingArguments(**{name: True}), OTHER_NAMES[name]) == choice


def test_other_names_are_of_fields_that_are_told_as_well():
    assert [name for name, target in OTHER_NAMES.items() if target not in HERE or target in OTHER_NAMES] == []


def plain_default(value):
    return value.value if isinstance(value, Enum) else value


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers' defaults")
def test_defaults_that_differ_from_the_originals_are_told():
    from transformers import TrainingArguments as Original

    args = TrainingArguments()
    for entry in dataclasses.fields(Original):
        missing = entry.default is dataclasses.MISSING
        original = plain_default(entry.default_factory() if missing else entry.default)
        if entry.name in ACCEPTED and entry.name not in OTHER_NAMES:
            ours = getattr(args, entry.name)
            told = re.search(r"default `(.+)`, not `(.+)`$", HERE[entry.name])
            assert (None if ours == original else (repr(ours), repr(original))) == (told and told.groups()), entry.name


# What proves it ---------------------------------------------------------------------------------------------------


@cache
def definitions(path):
    """Gives the source of each function, class and constant at the top of a file, by name."""
    source = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
        found.update({getattr(one, "name", getattr(one, "id", None)): text for one in targets})
    return found


def source_of(path, test):
    """Gives the source of a test, with that of the fixtures, cases and constants that it names."""
    known = dict(definitions(path))
    for beside in (path.with_name("conftest.py"), ROOT / "tests" / "distributed_cases.py"):
        if beside.name == "conftest.py" or path.name == "test_distributed.py":
            known = definitions(beside) | known
    reached, waiting = {}, [test]
    while waiting:
        name = waiting.pop()
        reached[name] = known[name]
        waiting += set(re.findall(r"\w+", known[name])) & known.keys() - reached.keys() - set(waiting)
    return "\n".join(reached.values())


@pytest.mark.parametrize(("name", "proof"), [(name, proof) for name, _, _, proof in FIELDS])
def test_the_test_that_proves_a_field_is_there_and_names_it(name, proof):
    path, _, test = proof.strip("` |").partition("::")
    if name in REFUSED:
        assert proof.strip("` |") == f"tests/{Path(__file__).name}::{REFUSAL.__name__}"
        return
    assert test in definitions(ROOT / path)
    meanings = {name, OTHER_NAMES.get(name, name)}
    for plugin in installed_plugins().values():
        meanings |= {plugin.settings_type.flat[flat] for flat in meanings & plugin.settings_type.flat.keys()}
    assert meanings & set(re.findall(r"\w+", source_of(ROOT / path, test)))


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_refused_in_the_words_of_the_page(name):
    words = re.sub(r" Taken: .+$", "", HERE[name].removeprefix("refused: "))
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**{name: "no such value"})
    (told,) = caught.value.problems
    assert told.replace(", got 'no such value' (from keyword)", "") == f"{name}: {words}"


REFUSAL = test_a_refused_field_is_refused_in_the_words_of_the_page


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_of_a_refused_field_is_taken_when_the_page_says_so(name):
    told = re.search(r" Taken: (.+)\.$", HERE[name])
    taken = [] if told is None else [ast.literal_eval(one) for one in re.findall(r"`([^`]*)`", told[1])]
    for value in taken:
        assert getattr(TrainingArguments(**{name: value}), name) == taken[0]
    for value in (None, False, True, -1, 0, "", "auto", [], {}):
        if not any(type(value) is type(one) and value == one for one in taken):
            with pytest.raises(SettingsError):
                TrainingArguments(**{name: value})


# Trainer ----------------------------------------------------------------------------------------------------------

ARGUMENTS = """
model args data_collator train_dataset eval_dataset tokenizer processing_class model_init compute_loss_func
compute_metrics callbacks optimizers preprocess_logits_for_metrics optimizer_cls_and_kwargs
"""


def test_the_arguments_of_the_constructor_are_told_and_are_there_or_refused():
    told = {cells[0].strip("`"): cells[1] for cells in rows_of("| argument | here |")}
    refused = {name: here for name, here in told.items() if here.startswith("refused: ")}
    assert list(told) == ARGUMENTS.split()
    assert told.keys() - inspect.signature(Trainer).parameters.keys() == refused.keys()
    for name, here in refused.items():
        with pytest.raises(SettingsError) as caught:
            Trainer(model=None, **{name: ()})
        assert f"{name}: {here.strip('| ').removeprefix('refused: ')}" in caught.value.problems


def methods_told():
    told = {}
    for methods, here in rows_of("| method | here |"):
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", methods), here))
    return told


def test_methods_of_the_original_are_there_unless_the_page_says_that_they_are_not():
    for name, here in methods_told().items():
        assert hasattr(Trainer, name) is not here.startswith("none"), name


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers' methods")
def test_every_public_method_and_argument_of_the_original_is_told():
    from transformers import Trainer as Original

    public = {name for name, value in vars(Original).items() if callable(value) and not name.startswith("_")}
    assert public == methods_told().keys()
    assert set(inspect.signature(Original).parameters) == {*ARGUMENTS.split()} - {"tokenizer"}


def test_other_classes_are_there_unless_the_page_says_that_they_are_not():
    for classes, here in rows_of("| class | here |"):
        for name in re.findall(r"`(\w+)`", classes):
            assert hasattr(trainer_core, name) is not here.startswith("none"), name
