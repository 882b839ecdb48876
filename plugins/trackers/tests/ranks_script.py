"""Run by `test_ranks`: two ranks train, and each says what its plugin holds."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path

import torch

from trainer_core.testing import only
from trainer_core.testing.tiny import tiny_trainer


class Looks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_end(self, trainer):
        plugin = trainer.bus.members["trackers"].plugin
        told = f"{[one.name for one in plugin._open]} {plugin.state_dict()}"
        (self.folder / f"rank-{trainer.ranks.rank}").write_text(told)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    options = {"report_to": "tensorboard", "run_name": "one", "logging_steps": 3, "save_strategy": "no"}
    with only("trackers", "logging", "checkpointing"):
        trainer = tiny_trainer(folder / "run", [Looks(folder)], options=options)
        trainer.train()
        trainer.evaluate(metric_key_prefix="test")


def start(rank: int, port: int, folder: Path) -> int:
    if pid := os.fork():
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    try:
        main(folder)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for pid in [start(rank, free, Path(sys.argv[1])) for rank in range(2)]:
        assert os.waitpid(pid, 0)[1] == 0
