import dataclasses
import importlib.util
import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy
import pytest

from trainer_core.errors import SettingsError
from trainer_core.settings import names
from trainer_core.settings.accepted import ACCEPTED
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.settings.options import Options

CORE_NAMES = """
output_dir gradient_accumulation_steps num_train_epochs max_steps seed past_index label_smoothing_factor
full_determinism neftune_noise_alpha learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps optim optim_args adafactor per_device_train_batch_size
per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size data_seed dataloader_drop_last
dataloader_num_workers remove_unused_columns label_names group_by_length length_column_name dataloader_pin_memory
dataloader_persistent_workers auto_find_batch_size dispatch_batches split_batches evaluation_strategy
prediction_loss_only eval_accumulation_steps eval_delay jit_mode_eval eval_steps load_best_model_at_end
metric_for_best_model greater_is_better use_legacy_prediction_loop include_inputs_for_metrics save_strategy save_steps
save_total_limit save_safetensors save_on_each_node save_only_model ignore_data_skip resume_from_checkpoint log_level
log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step logging_steps logging_nan_inf_filter
run_name disable_tqdm report_to skip_memory_metrics include_tokens_per_second include_num_input_tokens_seen push_to_hub
hub_model_id hub_strategy hub_token hub_private_repo hub_always_push push_to_hub_model_id push_to_hub_organization
push_to_hub_token bf16 fp16 fp16_opt_level half_precision_backend bf16_full_eval fp16_full_eval tf32
gradient_checkpointing gradient_checkpointing_kwargs fp16_backend torchdynamo torch_compile torch_compile_backend
torch_compile_mode local_rank ddp_backend tpu_num_cores fsdp fsdp_min_num_params fsdp_config
fsdp_transformer_layer_cls_to_wrap deepspeed ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
mp_parameters ddp_timeout overwrite_output_dir do_train do_eval do_predict no_cuda use_cpu use_mps_device use_ipex
tpu_metrics_debug debug ray_scope average_tokens_across_devices use_cache torch_empty_cache_steps optim_target_modules
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy eval_strategy
eval_on_start eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics
enable_jit_checkpoint restore_callback_states_from_checkpoint project trackio_space_id trackio_bucket_id
trackio_static_space_id hub_revision activation_checkpointing activation_checkpointing_kwargs use_liger_kernel
liger_kernel_config accelerator_config parallelism_config ddp_static_graph
"""


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_BLOCK_PLUGINS", "logging,checkpointing,console")


def mistakes(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    return caught.value.problems


@pytest.mark.parametrize("name", CORE_NAMES.split())
def test_every_name_of_the_original_is_an_option_or_is_explained(name):
    known = [*TrainingArguments.model_fields, *names.ALIASES]
    explained = [*names.REFUSED, *names.PLUGIN_OF]
    assert known.count(name) + explained.count(name) == 1


def refusal(name, value):
    reason, remedy = names.REFUSED[name]
    return [f"{name}: {reason}, got {value!r} (from keyword). {remedy}"]


@pytest.mark.parametrize("name", names.REFUSED)
def test_a_refused_name_is_refused_with_every_value_but_those_that_ask_for_what_is_done_anyway(name):
    for value in (None, False, True, "", "O1", "auto", "full_shard", -1, 0, 1, 0.0, [], {}, {"a": 1}):
        taken = [one for one in ACCEPTED.get(name, ()) if type(one) is type(value) and one == value]
        if not taken:
            assert mistakes(**{name: value}) == refusal(name, value)


@pytest.mark.parametrize("name", names.REFUSED)
def test_a_value_that_asks_for_what_is_done_anyway_is_taken_and_reads_back(name):
    for value in ACCEPTED.get(name, ()):
        args = TrainingArguments(**{name: value})
        assert args == TrainingArguments()
        assert getattr(args, name) == ACCEPTED[name][0]
    if name not in ACCEPTED and not hasattr(TrainingArguments, name):  # local_rank is read, and never given
        with pytest.raises(AttributeError, match=name):
            getattr(TrainingArguments(), name)


def test_only_refused_names_have_values_that_are_taken():
    assert ACCEPTED.keys() - names.REFUSED.keys() == set()
    assert names.REFUSED.keys() - ACCEPTED.keys() == {"fp16_opt_level", "local_rank", "use_cache"}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers' defaults")
def test_what_a_refused_name_reads_as_is_the_originals_default_but_for_three():
    from transformers import TrainingArguments as Original

    defaults = {entry.name: entry.default for entry in dataclasses.fields(Original) if entry.name in ACCEPTED}
    other = {name: default for name, default in defaults.items() if default not in ACCEPTED[name]}
    # these three are always done; the originals' defaults ask for less, or hide a loss that is no number
    assert other == {
        "enable_jit_checkpoint": False,
        "restore_callback_states_from_checkpoint": False,
        "logging_nan_inf_filter": True,
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["--save_safetensors", "True", "--past_index", "-1", "--fsdp", "", "--deepspeed", "None"], []),
        (
            ["--no_such", "1"],
            ["no_such: is not an option, got '1' (from command line). Look at `--help` for all options."],
        ),
        (
            ["--save_safetensors", "False"],
            [
                "save_safetensors: is not needed: weights are always saved as safetensors, got 'False' "
                "(from command line). Leave it out."
            ],
        ),
    ],
)
def test_a_command_line_says_such_a_value_as_text(line, told):
    if not told:
        assert TrainingArguments.from_command_line(line) == TrainingArguments()
        return
    with pytest.raises(SettingsError) as caught:
        TrainingArguments.from_command_line(line)
    assert caught.value.problems == told


def test_such_a_value_may_stand_in_a_group_and_in_the_schema():
    assert TrainingArguments(precision={"torchdynamo": None}) == TrainingArguments()
    assert TrainingArguments.json_schema()["properties"]["save_safetensors"] == {"enum": [True]}


@pytest.mark.parametrize(
    ("value", "kept"),
    [(True, "all"), (False, "no"), ("True", "all"), ("non_padding", "non_padding"), ("all", "all"), ("no", "no")],
)
def test_the_originals_yes_and_no_say_which_tokens_are_counted(value, kept):
    assert TrainingArguments(include_num_input_tokens_seen=value).include_num_input_tokens_seen == kept


def test_a_word_that_says_nothing_of_tokens_is_a_mistake():
    assert mistakes(include_num_input_tokens_seen="some") == [
        "include_num_input_tokens_seen: must be one of 'no', 'all', 'non_padding', got 'some' (from keyword). "
        "Use one of these."
    ]


def test_every_reason_and_remedy_is_one_sentence_each():
    for reason, remedy in [*names.REFUSED.values(), *names.REFUSED_OPTIMIZERS.values()]:
        assert not reason.endswith(".")
        assert remedy.endswith(".")


def test_every_field_has_a_docstring():
    assert [name for name, field in TrainingArguments.model_fields.items() if not field.description] == []


def test_every_option_is_in_one_group():
    groups = [kind for kind in Options.__subclasses__() if "group" in vars(kind)]
    assert sorted(name for kind in groups for name in kind.model_fields) == sorted(TrainingArguments.model_fields)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("output_dir", ["", 3]),
        ("gradient_accumulation_steps", [0, -1, 1.0, True, "1", None]),
        ("num_train_epochs", [0, -1.0, float("nan"), float("inf"), True, "3"]),
        ("max_steps", [0, -2, 1.5]),
        ("seed", [-1, 2**32, 1.0]),
        ("label_smoothing_factor", [-0.1, 1.1]),
        ("nan_policy", ["halt", None]),
        ("learning_rate", [-1e-9, float("nan"), "1e-3"]),
        ("adam_beta1", [1.0, -0.1]),
        ("max_grad_norm", [-1.0]),
        ("lr_scheduler_type", ["lineer", "greedy"]),
        ("lr_scheduler_kwargs", ["[1]", "{", 3]),
        ("warmup_steps", [-1, 1.5]),
        ("warmup_ratio", [1.5]),
        ("optim", ["adam", "adamw_bnb_8bit"]),
        ("per_device_train_batch_size", [0, "8"]),
        ("train_sampling_strategy", ["batch_rebalance"]),
        ("dataloader_num_workers", [-1]),
        ("eval_steps", [0, -1, 1.5]),
        ("eval_delay", [-1, None]),
        ("include_for_metrics", ["inputs", 3]),
        ("bf16", [1, "true", None]),
        ("ddp_timeout", [0]),
        ("torch_compile_mode", ["fast"]),
    ],
)
def test_values_that_make_no_sense_are_mistakes(option, values):
    for value in values:
        (told,) = mistakes(**{option: value})
        assert told.startswith(option)
        assert f"got {value!r} (from keyword). " in told


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("output_dir", Path("runs/a"), str(Path("runs/a"))),
        ("num_train_epochs", 2, 2.0),
        ("max_grad_norm", None, None),
        ("max_grad_norm", 0, 0.0),
        ("warmup_steps", 0.1, 0.1),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("lr_scheduler_kwargs", None, {}),
        ("gradient_checkpointing_kwargs", None, None),
        ("label_names", ("a", "b"), ["a", "b"]),
        ("include_for_metrics", ["inputs", "loss"], ["inputs", "loss"]),
        ("seed", numpy.int64(3), 3),
        ("learning_rate", numpy.float32(0.5), 0.5),
        ("bf16", numpy.bool_(True), True),
        ("per_gpu_train_batch_size", 4, 4),
        ("per_gpu_train_batch_size", None, 8),
    ],
)
def test_values_that_mean_the_same_are_taken(option, value, kept):
    read = getattr(TrainingArguments(**{option: value}), option)
    assert (read, type(read)) == (kept, type(kept))


def test_a_member_of_an_enum_is_its_value():
    class Schedule(StrEnum):
        COSINE = "cosine"

    assert TrainingArguments(lr_scheduler_type=Schedule.COSINE).lr_scheduler_type == "cosine"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers' names")
def test_every_optimizer_and_schedule_of_the_original_is_offered_or_refused():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for option, kinds, refused in (
        ("optim", OptimizerNames, names.REFUSED_OPTIMIZERS),
        ("lr_scheduler_type", SchedulerType, names.REFUSED_SCHEDULES),
    ):
        for kind in kinds:
            evaluation = {"eval_strategy": "epoch"} if kind.value == "reduce_lr_on_plateau" else {}
            if kind.value in refused:
                reason, remedy = refused[kind.value]
                said = f"{option}: {kind.value} {reason}, got {kind.value!r} (from keyword). {remedy}"
                assert mistakes(**{option: kind.value}) == [said]
            else:
                assert getattr(TrainingArguments(**{option: kind.value}, **evaluation), option) == kind.value


@pytest.mark.parametrize(
    ("options", "option", "value"),
    [
        ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
        ({"group_by_length": False}, "train_sampling_strategy", "random"),
        ({"group_by_length": False, "train_sampling_strategy": "sequential"}, "train_sampling_strategy", "sequential"),
        ({"include_inputs_for_metrics": True}, "include_for_metrics", ["inputs"]),
        ({"adafactor": True}, "optim", "adafactor"),
        ({"no_cuda": True}, "use_cpu", True),
        ({"gradient_checkpointing": True}, "activation_checkpointing", True),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "activation_checkpointing_kwargs",
            {"use_reentrant": False},
        ),
        ({"per_gpu_train_batch_size": 3}, "per_device_train_batch_size", 3),
        ({"per_gpu_eval_batch_size": 3}, "per_device_eval_batch_size", 3),
        ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
    ],
)
def test_another_spelling_sets_the_option_and_reads_back(options, option, value):
    args = TrainingArguments(**options)
    assert getattr(args, option) == value
    assert {name: getattr(args, name) for name in options} == options


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_flag_of_the_original_must_be_true_or_false(value):
    told = f"group_by_length: must be true or false, got {value!r} (from keyword). Use True or False."
    assert mistakes(group_by_length=value) == [told]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("eval_loss", False), ("accuracy", True), ("eval_french_accuracy", True), ("rougeL", True), ("wer", False)],
)
def test_the_name_of_a_metric_tells_its_direction(metric, direction):
    args = TrainingArguments(eval_strategy="epoch", metric_for_best_model=metric)
    assert args.greater_is_better is direction
    assert args.sources["greater_is_better"] == "follows from metric_for_best_model"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"eval_strategy": "steps"},
            "eval_steps: is needed with eval_strategy='steps', got None. Set eval_steps or logging_steps.",
        ),
        (
            {"metric_for_best_model": "accuracy"},
            "metric_for_best_model: needs evaluations, and there are none, got 'accuracy' (from keyword). "
            "Set eval_strategy.",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "lr_scheduler_type: needs evaluations, and there are none, got 'reduce_lr_on_plateau' (from keyword). "
            "Set eval_strategy.",
        ),
        (
            {"metric_for_best_model": "charm", "eval_strategy": "epoch"},
            "greater_is_better: is needed, because the name 'charm' does not tell whether more is better, got None. "
            "Set it to True or False.",
        ),
        ({"bf16": True, "fp16": True}, "fp16: contradicts bf16=True, got True (from keyword). Keep one of the two."),
        (
            {"torch_compile": False, "torch_compile_mode": "default"},
            "torch_compile_mode: has no effect with torch_compile=False, got 'default' (from keyword). "
            "Set torch_compile=True.",
        ),
        (
            {"warmup_steps": 5, "warmup_ratio": 0.1},
            "warmup_ratio: is given together with warmup_steps=5, got 0.1 (from keyword). Keep one of the two.",
        ),
        (
            {"dataloader_prefetch_factor": 2},
            "dataloader_prefetch_factor: has no effect without workers, got 2 (from keyword). "
            "Set dataloader_num_workers to 1 or more.",
        ),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "activation_checkpointing_kwargs: has no effect with activation_checkpointing=False, "
            "got {'use_reentrant': False} (from keyword). Set activation_checkpointing=True.",
        ),
        (
            {"ddp_static_graph": True, "gradient_accumulation_steps": 2},
            "ddp_static_graph: does not work with gradient_accumulation_steps=2, got True (from keyword). "
            "Leave it out, or take each batch in one piece.",
        ),
    ],
)
def test_options_that_cannot_be_meant_together_are_mistakes(options, told):
    assert mistakes(**options) == [told]


def test_naming_a_backend_turns_compilation_on():
    args = TrainingArguments(torch_compile_backend="eager")
    assert args.torch_compile
    assert not args.replace(torch_compile_backend=None).torch_compile


def test_a_plateau_follows_the_loss():
    args = TrainingArguments(eval_strategy="epoch", lr_scheduler_type="reduce_lr_on_plateau")
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_a_script_is_to_evaluate_where_evaluations_are_asked_for():
    asked = TrainingArguments(eval_strategy="epoch")
    assert (asked.do_eval, asked.sources["do_eval"]) == (True, "follows from eval_strategy")
    assert not TrainingArguments(eval_strategy="epoch", do_eval=False).do_eval
    assert not asked.replace(eval_strategy="no").do_eval


def test_making_arguments_imports_neither_torch_nor_the_readers_of_files():
    program = (
        "import json, sys; from trainer_core import TrainingArguments; TrainingArguments('x', bf16=True);"
        "print(json.dumps([m for m in ('torch', 'yaml', 'pydantic_settings', 'numpy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
