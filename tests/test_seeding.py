from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_core.data.seeding import Lending, NumpyGuard, PythonGuard, TorchGuard, mix

DRAWS = {
    "python": random.random,
    "python gauss": lambda: random.gauss(0, 1),
    "numpy": np.random.rand,
    "numpy normal": np.random.randn,
    "torch": lambda: torch.rand(1).item(),
    "torch normal": lambda: torch.randn(1).item(),
}


def following():
    """What the three generators give next, without moving them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = [draw() for _ in range(3) for draw in DRAWS.values()]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return drawn


@pytest.fixture(autouse=True)
def _own_states():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("before", [None, *DRAWS], ids=str)
@pytest.mark.parametrize("seed_all", [False, True])
def test_states_come_back_after_any_draw(draw, before, seed_all):
    lending = Lending(seed_all=seed_all)
    for _ in range(3):
        if before:
            DRAWS[before]()
        expected = following()
        lending.hold()
        lending.seed(5)
        draw()
        lending.release()
        assert following() == expected


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("before", [None, *DRAWS], ids=str)
def test_every_unseeded_draw_is_noticed_once(draw, before):
    lending = Lending()
    if before:
        DRAWS[before]()
    for expected in (False, True, False):
        lending.hold()
        if expected or lending.seeding:
            lending.seed(5)
            draw()
        assert lending.release() is expected
    assert lending.seeding


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*DRAWS, None]), max_size=8), st.integers(0, 700))
def test_nothing_drawn_is_nothing_noticed_whatever_the_run_draws(draws, words):
    lending = Lending()
    random.getrandbits(32 * words + 1)  # anywhere in a block of 624 words
    for name in draws:
        if name:
            DRAWS[name]()
        expected = following()
        lending.hold()
        assert not lending.release()
        assert following() == expected


@pytest.mark.parametrize("words", [*range(620, 630), *range(1244, 1252)])
def test_a_word_of_python_is_taken_back_across_blocks(words):
    random.seed(3)
    random.getrandbits(32 * words)
    expected = following()
    guard = PythonGuard()
    guard.hold()
    assert not guard.moved()
    assert following() == expected


@pytest.mark.parametrize("count", [624, 1248])
def test_whole_blocks_of_draws_are_noticed(count):
    guards = [TorchGuard(), NumpyGuard(), PythonGuard()]
    for guard in guards:
        guard.hold()
    torch.rand(count)
    np.random.bytes(4 * count)
    random.getrandbits(32 * count)
    assert [guard.moved() for guard in guards] == [True, True, True]


def test_seeded_draws_depend_on_the_seed_alone():
    drawn = []
    for _ in range(2):
        lending = Lending(seed_all=True)
        lending.hold()
        lending.seed(mix(1, 2, 3))
        drawn.append([draw() for draw in DRAWS.values()])
        lending.release()
        torch.rand(3), np.random.randn(1), random.gauss(0, 1)
    assert drawn[0] == drawn[1]


def test_a_bit_generator_of_the_users_is_left_alone():
    own = np.random.MT19937(1)
    theirs = np.random.PCG64(1)
    np.random.set_bit_generator(theirs)
    try:
        lending = Lending()
        lending.hold()
        np.random.rand()
        assert not lending.release()
        assert np.random.get_bit_generator() is theirs
    finally:
        np.random.set_bit_generator(own)


@given(st.lists(st.tuples(st.integers(0, 2**64), st.integers(0, 50), st.integers(0, 10**7)), unique=True, max_size=50))
def test_mixed_seeds_are_63_bits_and_differ(parts):
    seeds = {mix(*part) for part in parts}
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(seeds) == len({(seed % 2**64, *rest) for seed, *rest in parts})


def test_torch_and_numpy_streams_of_one_seed_are_unrelated():
    values = [mix(7, index) for index in range(1000)]
    assert sum(value >> 31 == value & 0xFFFFFFFF for value in values) == 0
