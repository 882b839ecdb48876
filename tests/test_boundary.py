from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from trainer_core.boundary import LARGE_BYTES, Boundary, PythonGuard, persistent_buffers
from trainer_core.state import TrainerState

CPU = torch.device("cpu")


def draws():
    return random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()), torch.rand(1).item()


@pytest.fixture(autouse=True)
def own_states():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def test_random_numbers_come_again_after_the_mark_is_put_back():
    boundary = Boundary(TrainerState(), CPU)
    for _ in range(3):  # states that changed since the last mark, and such that did not
        boundary.mark()
        first = [draws() for _ in range(700)]  # beyond one block of the Mersenne twister
        boundary.put_back()
        assert [draws() for _ in range(700)] == first
        boundary.put_back()


@pytest.mark.parametrize("draw", [lambda: random.gauss(0, 1), np.random.randn], ids=["python", "numpy"])
def test_a_normal_deviate_that_is_kept_for_the_next_call_is_remembered(draw):
    boundary = Boundary(TrainerState(), CPU)
    draw()  # makes two, keeps one
    boundary.mark()
    first = [draw() for _ in range(3)]
    boundary.put_back()
    assert [draw() for _ in range(3)] == first
    boundary.put_back()
    draw()  # takes the kept one; the words stay
    boundary.mark()
    first = [draw() for _ in range(3)]
    boundary.put_back()
    assert [draw() for _ in range(3)] == first


def test_pythons_state_is_read_in_full_only_after_a_draw(monkeypatch):
    state, read = PythonGuard(), []
    getstate = random.getstate
    monkeypatch.setattr(random, "getstate", lambda: read.append(1) or getstate())
    for _ in range(5):
        state.hold()
    random.random()
    state.hold()
    assert len(read) == 2


def test_counters_and_rows_are_put_back():
    state = TrainerState(global_step=3, batches_done=3, num_samples_seen=12, log_history=[{"loss": 1.0}])
    boundary = Boundary(state, CPU)
    boundary.mark()
    state.batches_done, state.num_samples_seen, state.num_input_tokens_seen, state.last_eval_step = 5, 20, 7, 3
    state.log_history.append({"eval_loss": 2.0})
    boundary.put_back()
    assert state == TrainerState(global_step=3, batches_done=3, num_samples_seen=12, log_history=[{"loss": 1.0}])


def test_nothing_is_put_back_after_the_update_is_done():
    state = TrainerState(global_step=3)
    boundary = Boundary(state, CPU)
    boundary.mark()
    state.global_step, state.batches_done = 4, 4
    boundary.put_back()
    assert state.batches_done == 4


def test_nothing_is_put_back_after_the_mark_is_forgotten():
    state = TrainerState(global_step=3)
    boundary = Boundary(state, CPU)
    boundary.mark()
    boundary.forget()
    state.last_eval_step = 3
    boundary.put_back()
    assert state.last_eval_step == 3


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("large", torch.zeros(LARGE_BYTES // 4 + 1))
        self.register_buffer("passing", torch.zeros(3), persistent=False)
        self.norm, self.instance = nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)
        self.alias = self.norm


def test_buffers_of_a_checkpoint_are_put_back_and_others_are_left():
    model, boundary = Large(), Boundary(TrainerState(), CPU)
    boundary.watch(model)
    for _ in range(2):
        boundary.mark()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.norm(torch.randn(8, 3))
        model.instance(torch.randn(2, 3, 5))
        model.large.add_(1)
        model.passing.add_(1)
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert {"large", "norm.running_mean", "norm.num_batches_tracked", "instance.running_mean"} <= set(moved)
        boundary.put_back()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.passing.tolist() == [2, 2, 2]


def test_a_large_buffer_is_copied_only_when_it_changed():
    model, boundary = Large(), Boundary(TrainerState(), CPU)
    boundary.watch(model)
    kept = next(copy for copy in boundary._copies if copy.nbytes > LARGE_BYTES)
    version = kept._version
    boundary.mark()
    assert kept._version == version
    model.large.add_(1)
    boundary.mark()
    assert kept._version > version


def test_each_persistent_buffer_is_found_once():
    model = Large()
    found = list(persistent_buffers(model))
    assert len(found) == len({id(buffer) for buffer in found}) == 7
    assert all(buffer is not model.passing for buffer in found)
