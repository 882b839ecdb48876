"""Run by `test_lost_ranks`: something happens to one rank of several, and the run is resumed.

Every rank that ends by itself writes how it ended. With torchrun it is a script of a user's, whose first start is cut.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ranks_script import Net, free_port
from torch.utils.data import Dataset

from trainer_core import Trainer, TrainerCallback, TrainingArguments


class Case(NamedTuple):
    """What happens, to which ranks, at which sample that they read (at which step for a callback)."""

    what: str
    at: dict[int, int] = {}  # noqa: RUF012 (never changed)
    world_size: int = 2
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


CASES = {
    "whole": Case("nothing"),
    "whole of three": Case("nothing", {}, 3),
    "killed": Case("kill", {1: 30}),
    "killed main": Case("kill", {0: 30}, 3),
    "exited": Case("exit", {1: 30}, 3),
    "stopped": Case("stop", {1: 30}, 2, {"ddp_heartbeat_timeout": 3}),
    "locked": Case("lock", {1: 30}, 2, {"ddp_timeout": 3, "ddp_heartbeat_timeout": 6}),
    "item": Case("raise", {1: 30}),
    "item of main": Case("raise", {0: 30}, 3),
    "both items": Case("raise", {0: 30, 1: 30}),
    "loss": Case("loss", {1: 7}),
    "callback": Case("callback", {1: 7}),
    "metric": Case("metric", {1: 13}),
    "before the first step": Case("raise", {1: 1}),
    "stopped at once": Case("interrupt", {1: 30}),
    "signal to one": Case("term", {1: 30}),
    "signal to all": Case("term", {0: 26, 1: 47}),
    "late signal": Case("late", {0: 26, 1: -1}),
}
RESUMED = (
    "killed",
    "item",
    "item of main",
    "both items",
    "loss",
    "callback",
    "metric",
    "signal to one",
    "signal to all",
)


def hurt(what):
    if what == "kill":
        time.sleep(1.5)  # longer than between two words of a rank
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(3)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what in ("term", "late"):
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "lock":
        threading.Event().wait()
    elif what == "interrupt":
        raise KeyboardInterrupt("stopped at once")
    else:
        raise ValueError("a mistake of the user's")


class Items(Dataset):
    """Draws noise, so that a sample that is drawn twice shows."""

    def __init__(self, case, rank):
        self.what, self.at, self.read = case.what, case.at.get(rank, -1), 0

    def __len__(self):
        return 50

    def __getitem__(self, index):
        self.read += 1
        if self.read == self.at and self.what not in ("loss", "callback", "metric"):
            hurt(self.what)
        return {"x": torch.randn(4) + index / 50, "labels": torch.tensor(index % 3)}


class Failing(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.at:
            raise ValueError("a mistake of the user's")


def metrics(case, rank):
    """Gives a metric that fails on one rank, in the rehearsal before training too."""

    def compute(prediction):
        if case.what == "metric" and rank in case.at:
            raise ValueError("a mistake of the user's")
        return {"rows": len(prediction.label_ids)}

    return compute


class Signalled(TrainerCallback):
    """Rank 1 gets its signal when that of rank 0 has been served."""

    def on_save(self, args, state, control, **others):
        if os.environ["RANK"] == "1" and state.global_step % 4:
            os.kill(os.getpid(), signal.SIGTERM)


class OwnTrainer(Trainer):
    loss_fails_at = -1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.state.global_step == self.loss_fails_at - 1:
            raise ValueError("a mistake of the user's")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def train(case, output_dir, *, resume):
    """Trains on this rank; gives how that ended."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rank = int(os.environ["RANK"])
    options = {"ddp_heartbeat_timeout": 60, "ddp_timeout": 60, **case.options}
    args = TrainingArguments(
        output_dir, num_train_epochs=2, per_device_train_batch_size=2, learning_rate=0.05, save_steps=4,
        logging_steps=2, eval_strategy="epoch", block_plugins=["console"], **options,
    )  # fmt: skip
    at = case.at.get(rank, -1)
    data = Items(case, rank)
    trainer = OwnTrainer(
        model=Net(), args=args, train_dataset=data, eval_dataset=Items(Case("nothing"), rank),
        compute_metrics=metrics(case, rank),
        callbacks=[Failing(at)] if case.what == "callback" else [Signalled] if case.what == "late" else [],
    )  # fmt: skip
    trainer.loss_fails_at = at if case.what == "loss" else -1
    began, error, notes = time.monotonic(), "", []
    try:
        trainer.train(resume_from_checkpoint=resume)
    except BaseException as caught:  # the test looks at it
        error, notes = f"{type(caught).__name__}: {caught}", caught.__notes__
    return {
        "error": error,
        "notes": notes,
        "seconds": time.monotonic() - began,
        "outcome": trainer.outcome,
        "step": trainer.state.global_step,
        "resumed": trainer.resumed_from and trainer.resumed_from.name,
        "rows": [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k}
                 for row in trainer.state.log_history],
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "threads": [thread.name for thread in threading.enumerate() if thread.name.startswith("trainer_core")],
    }  # fmt: skip


def start(rank, world_size, port, case, output_dir, target, *, resume):
    """Forks one rank and gives its process id."""
    if pid := os.fork():
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    try:
        target.with_name(f"{target.name}-{rank}.json").write_text(json.dumps(train(case, output_dir, resume=resume)))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end(pids, stopped):
    """Waits for all ranks but those that were stopped, which are killed then."""
    statuses = [os.waitpid(pid, 0)[1] for rank, pid in enumerate(pids) if rank not in stopped]
    for rank in stopped:
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    return statuses


def main(folder):
    torch.optim.SGD(Net().parameters())  # imports a second's worth of modules, which the ranks are then forked with
    import accelerate  # noqa: F401 (the same)

    for name, case in CASES.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        for job in ("cut", "resumed") if name in RESUMED else ("cut",):
            what, port = (case if job == "cut" else Case("nothing")), free_port()
            arguments = case.world_size, port, what, str(place / "out"), place / job
            pids = [start(rank, *arguments, resume=job == "resumed") for rank in range(case.world_size)]
            statuses = end(pids, case.at if what.what == "stop" else ())
            (place / f"{job}.statuses").write_text(json.dumps(statuses))


if __name__ == "__main__" and "TORCHELASTIC_RESTART_COUNT" in os.environ:
    place, attempt = Path(sys.argv[1]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    result = train(CASES["killed" if attempt == "0" else "whole"], str(place / "out"), resume=True)
    place.joinpath(f"attempt{attempt}-{os.environ['RANK']}.json").write_text(json.dumps(result))
    sys.exit(1 if result["error"] else 0)
elif __name__ == "__main__":
    main(Path(sys.argv[1]))
