"""Run by `test_ranks`: starts the ranks of several jobs, each of which trains and writes what all must agree on.

Torch is imported once; ranks are forked from there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from trainer_core import Signal, Trainer, TrainingArguments
from trainer_core_checkpointing import files


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.drop, self.head = nn.Linear(4, 6), nn.Dropout(0.4), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.head(self.drop(torch.relu(self.hidden(x))))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Cut:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.state.global_step == self.step:
            trainer.request(Signal.SAVE, by="cut", why="the test says so")
            trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


class Noting:
    """Notes what is announced, and at which update."""

    def on_train_begin(self, trainer):
        trainer.saves = []

    def on_save(self, trainer, checkpoint):
        trainer.saves.append((checkpoint.name, trainer.state.global_step, (checkpoint / "manifest.json").is_file()))


class Breaking:
    """Lets the save fail on one rank."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_begin(self, trainer):
        self.on = trainer.ranks.rank == self.rank

    def state_dict(self):
        return {"seen": {1} if self.on else 1}

    def load_state_dict(self, state):
        pass


class Failing:
    """Fails on one rank."""

    name = "failing"

    def on_step_end(self, trainer):
        if trainer.state.global_step == 4 and trainer.ranks.rank == 1:
            raise LookupError("on one rank alone")


class Full(files.Calls):
    """The disk of this rank has no space for its part of one checkpoint."""

    def create(self, path):
        if path.name == "rank-00001.safetensors" and "checkpoint-6" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


class Signalling:
    """One rank is asked to end while all evaluate."""

    def on_prediction_step(self, trainer):
        if trainer.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(job, output_dir, target):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(26, 4, generator=generator)
    data = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())
    evaluations = {"eval_strategy": "steps", "eval_steps": 4} if job == "signalled" else {"eval_strategy": "epoch"}
    args = TrainingArguments(
        output_dir, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=0.05,
        save_steps=3, logging_steps=2, load_best_model_at_end=True, save_total_limit=2,
        block_plugins=["console"], per_device_eval_batch_size=1, **evaluations,
        checkpoint_async="behind" in job,
    )  # fmt: skip
    if job.startswith("full"):
        files.calls = Full()
    plugins = {
        "cut": [Cut(5)],
        "breaking": [Breaking(1)],
        "failing": [Failing()],
        "signalled": [Signalling()],
        "behind": [Noting()],
        "full": [Noting()],
        "full, behind": [Noting()],
    }.get(job, [])
    trainer = Trainer(model=Net(), args=args, train_dataset=data, eval_dataset=data, plugins=plugins)
    error, trainer.saves = "", []
    try:
        trainer.train(resume_from_checkpoint=job == "resume")
    except Exception as caught:  # the test looks at it
        error = "\n".join([f"{type(caught).__name__}: {caught}", *getattr(caught, "__notes__", ())])
    keep = [
        {k: v for k, v in row.items() if "runtime" not in k and "second" not in k} for row in trainer.state.log_history
    ]
    result = {
        "error": error,
        "saves": trainer.saves,
        "history": keep,
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "random": torch.get_rng_state().tolist(),
        "best": os.path.basename(trainer.state.best_model_checkpoint or ""),
        "resumed": str(trainer.resumed_from),
        "epoch": trainer.state.epoch,
        "ended": [trainer.outcome, trainer.state.global_step, trainer.state.last_eval_step, trainer.exit_code],
    }
    Path(f"{target}-{trainer.ranks.rank}.json").write_text(json.dumps(result))


def start(rank, ranks, port, job, output_dir, target):
    """Forks one rank and gives its process id."""
    if pid := os.fork():
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    try:
        main(job, output_dir, target)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for job, output_dir, name, ranks in (
        ("whole", "whole", "whole", 2),
        ("cut", "cut", "cut", 2),
        ("copy", "cut", "fewer", 0),
        ("resume", "cut", "resumed", 2),
        ("resume", "fewer", "fewer", 1),
        ("breaking", "breaking", "breaking", 2),
        ("failing", "failing", "failing", 2),
        ("resume", "failing", "failed", 2),
        ("signalled", "signalled", "signalled", 2),
        ("behind", "behind", "behind", 2),
        ("full", "full", "full", 2),
        ("full, behind", "full_behind", "full_behind", 2),
    ):
        if job == "copy":
            shutil.copytree(folder / output_dir, folder / name)
            shutil.copytree(folder / output_dir, folder / "kept")
            continue
        port = free_port()
        places = (job, str(folder / output_dir), str(folder / name))
        for pid in [start(rank, ranks, port, *places) for rank in range(ranks)]:
            assert os.waitpid(pid, 0)[1] == 0, job
