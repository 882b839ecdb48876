"""Random states are captured and set without a draw, and derived where none were saved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainer_core_checkpointing import files
from trainer_core_checkpointing.content import files_of_tree
from trainer_core_checkpointing.random_states import capture, derive, restore
from trainer_core_checkpointing.tree import read_tree

CPU = torch.device("cpu")


def write_tree(tree, folder, name):
    for file in files_of_tree(tree, name):
        files.write_file(folder / file.name, file.pieces(), file.num_bytes, in_parallel=False)


@pytest.fixture(autouse=True)
def _put_back():
    before = capture(CPU)
    yield
    restore(before, CPU)


def draws():
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()]


@pytest.mark.parametrize("odd", [False, True])
def test_states_go_on_from_a_file_as_they_were(odd, tmp_path):
    if odd:  # python's and numpy's generators keep a second normal deviate for the next call
        random.gauss(0, 1)
        np.random.normal()
    write_tree(capture(CPU), tmp_path, "rank")
    expected = draws()
    restore(read_tree(tmp_path, "rank"), CPU)
    assert draws() == expected


def test_another_bit_generator_of_numpy_is_captured_too(tmp_path):
    before = np.random.mtrand.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(5))
    try:
        write_tree(capture(CPU), tmp_path, "rank")
        expected = draws()
        restore(read_tree(tmp_path, "rank"), CPU)
        assert draws() == expected
    finally:
        np.random.set_bit_generator(before)


def test_derived_states_follow_from_seed_rank_and_step_and_draw_nothing():
    before = capture(CPU)
    states = [derive(*place, CPU) for place in ((1, 2, 3), (1, 2, 3), (1, 3, 3), (1, 2, 4), (2, 2, 3))]
    after = capture(CPU)
    assert after["python"] == before["python"]
    assert torch.equal(after["torch"], before["torch"])
    first = []
    for state in states:
        restore(state, CPU)
        first.append(draws())
    assert first[0] == first[1]
    assert len({str(draw) for draw in first}) == 4
