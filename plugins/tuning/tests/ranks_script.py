"""Run by `test_ranks`: two ranks search together, and each writes what both must agree on.

Everything is imported once; ranks are forked from there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import optuna.storages._rdb.alembic  # noqa: F401 # what opening a storage imports
import torch
import torch._dynamo  # what the first optimizer imports
from accelerate import Accelerator  # noqa: F401 # the same

from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names
from trainer_core.testing import TinyModel, tiny_dataset


class Watch:
    """Notes what each trial is trained with, and ends the second with an error on every rank."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        self.seen.append((trainer.args.learning_rate, trainer.model.dropout.p, trainer.args.output_dir))

    def on_step_end(self, trainer):
        if trainer.state.trial_name == "run-1":
            raise MemoryError("too much")


def model_init(trial):
    model = TinyModel()
    if trial is not None:
        model.dropout.p = trial.suggest_float("dropout", 0.0, 0.5)
    return model


def rate(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}


def main(job, output_dir):
    torch.set_num_threads(1)
    watch = Watch()
    args = TrainingArguments(
        output_dir, max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2, tuning={
            "plot": None, "catch": ["MemoryError"], "pruner_options": {"n_startup_trials": 1}},
        block_plugins=sorted(installed_names() - {"tuning"}),
    )  # fmt: skip
    trainer = Trainer(
        model_init=model_init, args=args, train_dataset=tiny_dataset(), eval_dataset=tiny_dataset(8, seed=1),
        plugins=[watch],
    )  # fmt: skip
    result, error = None, ""
    calls = iter(range(100))
    objective = (lambda metrics: float(next(calls))) if job != "wrong" else (lambda metrics: "low")
    try:
        result = trainer.hyperparameter_search(rate, objective, n_trials=4)
    except Exception as caught:  # the test looks at it
        error = f"{type(caught).__name__}: {caught}"
    told = {"best": result, "error": error, "seen": watch.seen, "lr": trainer.args.learning_rate}
    Path(f"{output_dir}-{trainer.ranks.rank}.json").write_text(json.dumps(told))


def start(rank, port, job, output_dir):
    """Forks one of two ranks and gives its process id."""
    if pid := os.fork():
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    try:
        main(job, output_dir)
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
    for job in ("search", "wrong"):
        port = free_port()
        for pid in [start(rank, port, job, str(folder / job)) for rank in range(2)]:
            assert os.waitpid(pid, 0)[1] == 0, job
