"""Run by `test_worldsize`: each case is a run that nobody cut, one that is cut, and one that goes on on other ranks.

Every rank writes which samples it trained on in which update.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ranks_script import Cut, free_port
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset

from trainer_core import Trainer, TrainingArguments


class Ranks(NamedTuple):
    """How many there are, and what a user says of batches on them."""

    world_size: int
    batch_size: int
    accumulation: int = 1


class Case(NamedTuple):
    """What is trained on, and how it is cut."""

    before: Ranks
    after: Ranks
    cut_at: int
    data: str = "items"
    rows: int = 53
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


class Items(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return {
            "x": torch.tensor([index / self.rows, 1.0]),
            "labels": torch.tensor(index % 3),
            "id": torch.tensor(index),
            "length": (7 * index) % 11,
        }


class Stream(IterableDataset):
    def __init__(self, rows):
        self.items = Items(rows)

    def __iter__(self):
        return map(self.items.__getitem__, range(self.items.rows))


class MeasuredStream(Stream):
    def __len__(self):
        return self.items.rows


DATA = {"items": Items, "stream": Stream, "measured stream": MeasuredStream}

CASES = {
    "1 to 2": Case(Ranks(1, 2, 6), Ranks(2, 2, 6), cut_at=2),
    "2 to 1": Case(Ranks(2, 3, 2), Ranks(1, 3, 2), cut_at=3, options={"dataloader_drop_last": True}),
    "2 to 3": Case(Ranks(2, 3, 2), Ranks(3, 2, 2), cut_at=7, options={"train_sampling_strategy": "group_by_length"}),
    "3 to 2": Case(
        Ranks(3, 2, 2), Ranks(2, 2, 9), cut_at=2,
        options={"train_sampling_strategy": "group_by_length", "dataloader_drop_last": True},
    ),
    "4 to 1": Case(Ranks(4, 3), Ranks(1, 4), cut_at=5, options={"train_sampling_strategy": "sequential"}),
    "4 to 3 with workers": Case(Ranks(4, 1, 3), Ranks(3, 4), cut_at=6, options={"dataloader_num_workers": 1}),
    "2 to 1 at the end of an epoch": Case(Ranks(2, 3, 2), Ranks(1, 2), cut_at=5),
    "other micro-batches": Case(Ranks(2, 3, 2), Ranks(2, 1, 2), cut_at=2),
    "stream, 2 to 3": Case(Ranks(2, 3, 2), Ranks(3, 2, 2), cut_at=3, data="stream", options={"max_steps": 10}),
    "stream, 3 to 1 at the end of an epoch": Case(
        Ranks(3, 2, 2), Ranks(1, 12), cut_at=5, data="stream", options={"max_steps": 10}
    ),
    "stream, 2 to 1, no tail": Case(
        Ranks(2, 3, 2), Ranks(1, 4), cut_at=2, data="measured stream",
        options={"dataloader_drop_last": True, "dataloader_num_workers": 1},
    ),
    "refused": Case(Ranks(2, 3, 2), Ranks(3, 5, 2), cut_at=2),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)

    def forward(self, x, labels, id):
        return functional.cross_entropy(self.layer(x), labels)


class Witness:
    """Notes the samples of each update; a micro-batch that only keeps a rank in step has none."""

    def __init__(self):
        self.seen, self.random = {}, []

    def on_step_begin(self, trainer):
        self.random = self.random or torch.get_rng_state().tolist()

    def on_step_end(self, trainer):
        stream, state = trainer.train_stream, trainer.state
        is_last = stream.num_batches in (None, state.batches_done)
        window = trainer.window[:-1] if stream.last_is_padding and is_last else trainer.window
        self.seen[state.global_step] = [int(number) for inputs in window for number in inputs["id"]]


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def train(case, ranks, output_dir, *, cut_at, resume):
    """Trains on this rank; gives what it saw."""
    said = Said()
    logging.getLogger("trainer_core").addHandler(said)
    args = TrainingArguments(
        output_dir, per_device_train_batch_size=ranks.batch_size, gradient_accumulation_steps=ranks.accumulation,
        save_strategy="no", optim="sgd", learning_rate=0.5, logging_steps=2, seed=3, block_plugins=["console"],
        **{"num_train_epochs": 2, **case.options},
    )  # fmt: skip
    witness, data = Witness(), DATA[case.data](case.rows)
    plugins = [witness, Cut(cut_at)] if cut_at else [witness]
    trainer = Trainer(model=Net(), args=args, train_dataset=data, plugins=plugins)
    error = ""
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Exception as caught:  # the test looks at it
        error = f"{type(caught).__name__}: {caught}"
    plan = trainer.last_plan
    return {
        "error": error,
        "seen": witness.seen,
        "said": said.lines,
        "rows": [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k}
                 for row in trainer.state.log_history],
        "samples": trainer.state.num_samples_seen,
        "max_steps": trainer.state.max_steps,
        "plan": [plan.arithmetic, plan.updates_per_epoch, plan.num_samples] if plan is not None else None,
        "random": witness.random,
    }  # fmt: skip


def start(rank, port, case, ranks, output_dir, target, **how):
    """Forks one rank and gives its process id."""
    if pid := os.fork():
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_WORLD_SIZE": str(ranks.world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    try:
        Path(f"{target}-{rank}.json").write_text(json.dumps(train(case, ranks, output_dir, **how)))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(folder):
    torch.set_num_threads(1)
    torch.optim.SGD(Net().parameters())  # imports a second's worth of modules, which the ranks are then forked with
    import accelerate  # noqa: F401 (the same)

    for name, case in CASES.items():
        place = folder / name.replace(",", "").replace(" ", "-")
        place.mkdir()
        jobs = {
            "whole": (case.before, "whole", {"cut_at": 0, "resume": False}),
            "cut": (case.before, "cut", {"cut_at": case.cut_at, "resume": False}),
            "resumed": (case.after, "cut", {"cut_at": 0, "resume": True}),
        }
        for job, (ranks, output_dir, how) in jobs.items():
            port, places = free_port(), (str(place / output_dir), str(place / f"{job}"))
            started = [start(rank, port, case, ranks, *places, **how) for rank in range(ranks.world_size)]
            statuses = [os.waitpid(pid, 0)[1] for pid in started]
            assert not any(statuses), (name, job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
