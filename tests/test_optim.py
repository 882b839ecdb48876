"""Optimisers equal hand-written torch ones to the bit, and nothing here imports the compiler."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainer_core.errors import ModelError, SettingsError
from trainer_core.optim.optimizers import (
    OPTIMIZERS,
    construct_optimizer,
    create_optimizer,
    decay_parameter_names,
    load_optimizer_state_dict,
    optimizer_state_dict,
    parameter_groups,
    raw_step,
)

CPU = torch.device("cpu")


def fake(optim="adamw_torch_fused", **changes):
    values = {
        "optim": optim,
        "optim_args": None,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "sources": {},
    }
    return SimpleNamespace(**{**values, **changes})


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))


def train(model, step, updates=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        model.zero_grad()
        model(torch.randn(6, 5, generator=generator)).square().mean().backward()
        step()
    return [p.detach().clone() for p in model.parameters()]


def assert_same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- parameter groups


class RMSNormLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class LlamaRMSNormFast(RMSNormLike):
    pass


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)


def test_biases_and_norm_layers_do_not_decay_by_class_or_name():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 3),
            "layer": nn.LayerNorm(3),
            "group": nn.GroupNorm(1, 3),
            "rms": nn.RMSNorm(3),
            "batch": nn.BatchNorm1d(3),
            "instance": nn.InstanceNorm2d(3, affine=True),
            "sync": nn.SyncBatchNorm(3),
            "fast": LlamaRMSNormFast(),
            "like": RMSNormLike(),
            "wrapper": PreNorm(),
            "relative_bias": nn.Embedding(2, 2),
        }
    )
    assert decay_parameter_names(model) == ["linear.weight", "wrapper.inner.weight"]


def test_a_bare_parameter_decays():
    model = nn.Module()
    model.query = nn.Parameter(torch.zeros(2))
    assert decay_parameter_names(model) == ["query"]


@pytest.mark.parametrize("kind", ["BertConfig", "GPT2Config", "T5Config", "LlamaConfig"])
def test_what_decays_is_what_decays_in_the_original(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "d_ff": 8, "d_kv": 4}
    config = getattr(transformers, kind)(**sizes, intermediate_size=8, num_key_value_heads=2)
    model = transformers.AutoModel.from_config(config)
    original = transformers.Trainer.get_decay_parameter_names(None, model)
    first_names = {name for name, _ in model.named_parameters()}  # the original lists a shared one under each name
    assert set(decay_parameter_names(model)) == set(original) & first_names


def test_groups_hold_every_trainable_parameter_once():
    model = small_model()
    model[3].weight.requires_grad_(False)
    model.tied = model[0]
    decay, rest = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in (decay, rest)] == [0.1, 0.0]
    assert [id(p) for p in decay["params"]] == [id(model[0].weight)]
    assert [id(p) for p in rest["params"]] == list(map(id, [model[0].bias, *model[1].parameters(), model[3].bias]))


def test_an_empty_group_is_left_out():
    assert [group["weight_decay"] for group in parameter_groups(nn.Linear(2, 2, bias=False), 0.1)] == [0.1]
    assert [group["weight_decay"] for group in parameter_groups(nn.LayerNorm(2), 0.1)] == [0.0]


def test_without_decay_there_is_one_group_in_the_models_order():
    model = small_model()
    (group,) = parameter_groups(model, 0.0)
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([nn.Linear, nn.LayerNorm, nn.Tanh]), max_size=6), st.sets(st.integers(0, 11)))
def test_groups_partition_the_trainable_parameters(kinds, frozen):
    model = nn.Sequential(*(kind() if kind is nn.Tanh else kind(*[3] * (1 + (kind is nn.Linear))) for kind in kinds))
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number not in frozen)
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# --- optimisers by name

BY_HAND = {
    "adamw_torch_fused": lambda g: torch.optim.AdamW(g, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, fused=True),
    "adamw_torch": lambda g: torch.optim.AdamW(g, lr=1e-2, betas=(0.8, 0.95), eps=1e-6),
    "sgd": lambda g: torch.optim.SGD(g, lr=1e-2),
    "rmsprop": lambda g: torch.optim.RMSprop(g, lr=1e-2),
    "adagrad": lambda g: torch.optim.Adagrad(g, lr=1e-2),
    "adafactor": lambda g: torch.optim.Adafactor(g, lr=1e-2, eps=(1e-18, 1.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_by_name_equals_a_hand_written_one_to_the_bit(name):
    ours, theirs = small_model(), small_model()
    optimizer = create_optimizer(ours, fake(name), CPU)
    decay, rest = [theirs[0].weight, theirs[3].weight], [theirs[0].bias, *theirs[1].parameters(), theirs[3].bias]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    by_hand = BY_HAND[name](groups)
    assert [{**g, "params": 0} for g in optimizer.param_groups] == [{**g, "params": 0} for g in by_hand.param_groups]
    assert_same(train(ours, raw_step(optimizer)), train(theirs, by_hand.step))
    assert_same(train(ours, optimizer.step), train(theirs, by_hand.step))


def test_adafactor_steps_as_the_originals_does():
    transformers = pytest.importorskip("transformers")
    ours, theirs = small_model(), small_model()
    before = [p.detach().clone() for p in ours.parameters()]
    optimizer = create_optimizer(ours, fake("adafactor", weight_decay=0.0, learning_rate=1e-3), CPU)
    original = transformers.Adafactor(theirs.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)
    after, expected = train(ours, optimizer.step, 10), train(theirs, original.step, 10)
    for old, new, wanted in zip(before, after, expected, strict=True):
        assert torch.linalg.norm(new - wanted) <= 0.02 * torch.linalg.norm(wanted - old)


def test_optim_args_reach_the_optimizer():
    args = fake("sgd", optim_args=" momentum=0.9, nesterov=True,dampening=0 ,fused=None")
    group = create_optimizer(small_model(), args, CPU).param_groups[0]
    assert {key: group[key] for key in ("momentum", "nesterov", "dampening", "fused")} == {
        "momentum": 0.9,
        "nesterov": True,
        "dampening": 0,
        "fused": None,
    }
    args = fake("adafactor", optim_args="eps=(none, 1e-3),d=2.0".replace("none", "None"))
    assert create_optimizer(small_model(), args, CPU).param_groups[0]["eps"] == (None, 1e-3)
    args = fake("adamw_torch", optim_args="amsgrad=true")
    assert create_optimizer(small_model(), args, CPU).param_groups[0]["amsgrad"] is True


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        (
            {"optim": "sdg"},
            [
                "optim: unknown optimizer, got 'sdg'. Did you mean 'sgd'? Use one of 'adamw_torch_fused', "
                "'adamw_torch', 'sgd', 'rmsprop', 'adagrad', 'adafactor'."
            ],
        ),
        (
            {"optim": "adafactor", "optim_args": "decay_rate=0.8,weight_decay=0.1,d"},
            [
                "optim_args: an option has no value, got 'd'. Write it as 'key=value,key=value'.",
                "optim_args.decay_rate: unknown option, got 0.8. 'adafactor' takes 'beta2_decay', 'eps', 'd', "
                "'foreach', 'maximize'.",
                "optim_args.weight_decay: is not set here, got 0.1. Set weight_decay.",
            ],
        ),
        (
            {"optim_args": "eps=1e-3"},
            ["optim_args.eps: is not set here, got 0.001. Set adam_epsilon."],
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=fast"},
            [
                "optim_args: value is not a number, true, false or none, got 'momentum=fast'. "
                "Write it as 'key=value,key=value'."
            ],
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=-1"},
            ["optim: SGD refuses its settings: Invalid momentum value: -1, got {'momentum': -1}. Correct optim_args."],
        ),
        (
            {"optim": "sgd", "adam_beta1": 0.5, "sources": {"adam_beta1": "train.yaml", "adam_beta2": "default"}},
            [
                "adam_beta1: 'sgd' has no such setting, got 0.5 (from train.yaml). "
                "Leave it out, or use optim='adamw_torch_fused', 'adamw_torch'."
            ],
        ),
    ],
)
def test_wrong_settings_are_all_told_at_once(changes, problems):
    with pytest.raises(SettingsError) as caught:
        create_optimizer(small_model(), fake(**changes), CPU)
    assert caught.value.problems == problems


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ModelError) as caught:
        create_optimizer(small_model().requires_grad_(False), fake(), CPU)
    assert str(caught.value) == ("model: no parameter requires a gradient, got 0 trainable parameters. Unfreeze some.")


@pytest.mark.parametrize(
    ("model", "device"),
    [
        (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]), CPU),
        (nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]), CPU),
        (nn.Linear(2, 2), torch.device("hpu")),
    ],
)
def test_adamw_runs_unfused_where_torch_has_no_kernel(model, device, caplog):
    with caplog.at_level("INFO", "trainer_core.optim"):
        optimizer = create_optimizer(model, fake(), device)
    assert type(optimizer) is torch.optim.AdamW
    assert not optimizer.param_groups[0]["fused"]
    assert caplog.messages == ["optim: torch has no fused kernel for these parameters; adamw_torch_fused runs unfused"]


# --- construction, state and step without the compiler

WITHOUT_COMPILER = """
import sys
from types import SimpleNamespace
import torch
from trainer_core.optim.clipping import build_clipper
from trainer_core.optim.optimizers import *
from trainer_core.optim.optimizers import OPTIMIZERS
from trainer_core.optim.schedule_state import schedule_state, load_schedule_state
from trainer_core.optim.schedules import SCHEDULES, create_schedule
args = SimpleNamespace(optim_args=None, learning_rate=1e-2, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.99,
    adam_epsilon=1e-8, sources={}, warmup_steps=0, warmup_ratio=0.0, greater_is_better=None, metric_for_best_model=None)
options = {"warmup_stable_decay": {"num_decay_steps": 1}, "cosine_with_min_lr": {"min_lr": 0.0},
    "cosine_warmup_with_min_lr": {"min_lr": 0.0}}
for args.optim in OPTIMIZERS:
    model = torch.nn.Linear(2, 2)
    optimizer = create_optimizer(model, args, torch.device("cpu"))
    clip, step = build_clipper(model.parameters(), 1.0), raw_step(optimizer)
    for args.lr_scheduler_type in SCHEDULES:
        args.lr_scheduler_kwargs = options.get(args.lr_scheduler_type)
        schedule = create_schedule(optimizer, args, 4)
        model(torch.ones(1, 2)).sum().backward()
        clip(), step(), schedule.step(), schedule.on_metric(1.0)
        load_schedule_state(schedule, schedule_state(schedule))
    load_optimizer_state_dict(optimizer, optimizer_state_dict(optimizer))
assert "torch._dynamo" not in sys.modules
torch.optim.SGD(model.parameters(), lr=0.1)
print("torch._dynamo" in sys.modules)
"""


def test_no_call_of_ours_imports_the_compiler_though_torchs_own_do():
    run = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "True"), run.stderr


def test_a_constructed_optimizer_can_take_another_group_and_be_copied():
    optimizer = construct_optimizer(torch.optim.SGD, [{"params": [nn.Parameter(torch.zeros(2))]}], lr=0.1)
    assert "add_param_group" not in vars(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(copy.deepcopy(optimizer).param_groups) == 2


def test_a_class_with_its_own_way_to_add_groups_is_called_as_it_is():
    class Counting(torch.optim.SGD):
        added = 0

        def add_param_group(self, param_group):
            Counting.added += 1
            super().add_param_group(param_group)

    construct_optimizer(Counting, [{"params": [nn.Parameter(torch.zeros(2))]}], lr=0.1)
    assert Counting.added == 1


def test_a_state_restores_the_optimizer_and_calls_its_hooks():
    model, again = small_model(), small_model()
    optimizer, restored = (create_optimizer(m, fake(), CPU) for m in (model, again))
    train(model, optimizer.step)
    calls = []
    optimizer.register_state_dict_post_hook(lambda o, state: calls.append("saved"))
    restored.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    again.load_state_dict(model.state_dict())
    load_optimizer_state_dict(restored, copy.deepcopy(optimizer_state_dict(optimizer)))
    assert calls == ["saved", "loaded"]
    assert_same(train(again, raw_step(restored)), train(model, raw_step(optimizer)))


def test_a_subclass_gives_its_own_state():
    class Named(torch.optim.SGD):
        def state_dict(self):
            return {"mine": 1}

    assert optimizer_state_dict(Named([nn.Parameter(torch.zeros(2))], lr=0.1)) == {"mine": 1}


# --- raw_step


def test_a_raw_step_survives_a_restored_state():
    model, by_hand = small_model(), small_model()
    optimizer, theirs = (create_optimizer(m, fake(), CPU) for m in (model, by_hand))
    step = raw_step(optimizer)
    for m, o, do in ((model, optimizer, step), (by_hand, theirs, theirs.step)):
        train(m, do)
        o.load_state_dict(copy.deepcopy(o.state_dict()))
    assert_same(train(model, step), train(by_hand, theirs.step))


def test_a_raw_step_leaves_the_grad_mode_and_makes_no_graph():
    model = small_model()
    train(model, raw_step(create_optimizer(model, fake("sgd"), CPU)))
    assert torch.is_grad_enabled()
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("where", ["before", "after", "everywhere"])
def test_hooks_that_are_registered_later_are_called(where):
    model = small_model()
    optimizer = create_optimizer(model, fake(), CPU)
    step, calls = raw_step(optimizer), []

    def hook(*_):
        calls.append(where)

    train(model, step, 1)
    register = {
        "before": optimizer.register_step_pre_hook,
        "after": optimizer.register_step_post_hook,
        "everywhere": register_optimizer_step_post_hook,
    }[where]
    handle = register(hook)
    train(model, step, 2)
    handle.remove()
    train(model, step, 1)
    assert calls == [where, where]


def test_a_profiler_sees_the_step():
    model = small_model()
    step = raw_step(create_optimizer(model, fake(), CPU))
    with torch.profiler.profile() as profile:
        train(model, step, 1)
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


def test_a_step_of_the_users_own_is_called():
    calls = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            calls.append("subclass")

    parameters = [nn.Parameter(torch.zeros(2))]
    raw_step(Own(parameters, lr=0.1))()
    patched = torch.optim.SGD(parameters, lr=0.1)
    patched.step = lambda: calls.append("instance")
    raw_step(patched)()
    assert calls == ["subclass", "instance"]


def test_an_optimizer_that_torchs_schedulers_patched_is_stepped_raw_without_their_warning(recwarn):
    ours, theirs = small_model(), small_model()
    optimizer, by_hand = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (ours, theirs))
    scheduler, other = (torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, by_hand))
    step = raw_step(optimizer)
    assert step.__name__ == "step"
    assert_same(train(ours, lambda: (step(), scheduler.step())), train(theirs, lambda: (by_hand.step(), other.step())))
    assert not recwarn.list


def test_an_optimizer_that_needs_a_closure_or_a_graph_keeps_its_own_step():
    parameters = [nn.Parameter(torch.zeros(2))]
    for optimizer in (torch.optim.LBFGS(parameters), torch.optim.SGD(parameters, lr=0.1, differentiable=True)):
        assert "_call_step" in repr(raw_step(optimizer))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "0.1"),
        ("weight_decay", None),
        ("weight_decay", [0.1]),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("betas", ("a", "b")),
        ("amsgrad", 1),
        ("maximize", None),
        ("eps", True),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(name, value):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.1)
    state = copy.deepcopy(optimizer_state_dict(optimizer))
    state["param_groups"][0][name] = value
    with pytest.raises(ValueError, match=f"^{name} cannot be "):
        load_optimizer_state_dict(optimizer, state)


def test_a_state_of_another_shape_than_its_parameter_is_refused_by_name():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer.step, 1)
    state = copy.deepcopy(optimizer_state_dict(optimizer))
    wanted = tuple(state["state"][0]["exp_avg"].shape)
    state["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=rf"^exp_avg has shape \(7,\) for {re.escape(str(wanted))}$"):
        load_optimizer_state_dict(optimizer, state)


@pytest.mark.parametrize("change", [{"fused": True}, {"foreach": False}, {"lr": torch.tensor(0.1)}, {"lr": 1}])
def test_an_option_that_differs_in_value_alone_is_taken(change):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.1)
    state = copy.deepcopy(optimizer_state_dict(optimizer))
    state["param_groups"][0].update(change)
    load_optimizer_state_dict(optimizer, state)
    assert {name: optimizer.param_groups[0][name] for name in change} == change
