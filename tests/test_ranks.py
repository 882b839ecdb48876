from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from tests.toys import Classifier, trainer_for
from trainer_core import DistributedError
from trainer_core.ranks import Ranks, _say_passed_over, create_accelerator


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def alone(tmp_path):
    return Ranks(create_accelerator(trainer_for(tmp_path, Classifier()).args))


def test_one_process_is_rank_0_of_1_on_the_cpu(alone):
    assert (alone.world_size, alone.rank, alone.local_rank, alone.is_main) == (1, 0, 0, True)
    assert alone.device == torch.device("cpu")


@pytest.mark.parametrize("use_cpu", [True, False])
def test_a_run_stays_on_the_cpu_where_it_is_to(tmp_path, monkeypatch, use_cpu):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    create_accelerator(trainer_for(tmp_path, Classifier(), use_cpu=use_cpu).args)
    assert bool(PartialState()._cpu) is use_cpu


def test_one_process_needs_nobody_to_agree(alone):
    value = torch.tensor(2.0)
    assert alone.sum(value) is value
    assert alone.max(value) is value
    assert alone.sum_of_numbers(1, 2.5) == [1, 2.5]
    assert alone.gather_objects("it") == ["it"]
    assert alone.from_main("it") == "it"
    alone.send_from_main([value])
    alone.barrier()


def test_processes_that_do_not_see_each_other_are_refused(tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path, Classifier())
    create_accelerator(trainer.args)  # as a script does that makes an Accelerator before it was launched as one of two
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistributedError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "launch: 2 processes were started and each of them believes that it is alone. Start them with `torchrun` and, "
        "without an accelerator, set ACCELERATE_USE_CPU=true."
    )


def test_an_accelerator_that_the_user_made_is_shared(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    assert create_accelerator(trainer_for(tmp_path, Classifier()).args).state.mixed_precision == "bf16"
    assert accelerator.num_processes == 1


@pytest.mark.parametrize(
    ("method", "variable"), [("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_a_launchers_wish_for_shards_is_passed_over_on_the_cpu_and_said_once(
    tmp_path, monkeypatch, caplog, method, variable
):
    monkeypatch.setenv(variable, "true")
    _say_passed_over.cache_clear()
    for _ in range(2):
        create_accelerator(trainer_for(tmp_path, Classifier()).args)
    told = f"launch: {method} works on accelerators alone; the model is replicated on each of 1 rank(s)."
    assert [record.getMessage() for record in caplog.records if record.name == "trainer_core.ranks"] == [told]
    assert os.environ[variable] == "true"


ENDS = """
import ctypes, sys
from trainer_core.ranks import _skip_destructors
libc = ctypes.CDLL(None)
libc.on_exit(ctypes.cast(libc.abort, ctypes.c_void_p), None)  # as a library whose teardown goes wrong
if sys.argv[1] == "skip":
    _skip_destructors()
print("told", end="")
sys.exit(3)
"""


@pytest.mark.parametrize(("mode", "code"), [("skip", 3), ("run", -signal.SIGABRT)])
def test_a_rank_ends_with_its_exit_code_though_a_librarys_teardown_would_abort_it(mode, code):
    done = subprocess.run([sys.executable, "-c", ENDS, mode], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "told")
