"""Run by `test_ranks` on two ranks: each writes how every run ended to `results-rank<r>.json`.

torchrun --standalone --nproc_per_node 2 ranks_script.py <folder>
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import monotonic

import torch

from trainer_core import EarlyStoppingCallback, Signal, Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model
from trainer_core_early_stopping import stop_at

RANK = int(os.environ["RANK"])
SCORES = [0.5, 0.6, 0.6, 0.61, 0.55, 0.7, 0.72, 0.71, 0.6, 0.3, 0.2, 0.1]


class Cut:
    def on_step_end(self, trainer):
        if trainer.state.global_step == 8:
            trainer.request(Signal.SAVE, by="cut", why="the test says so")
            trainer.request(Signal.STOP, by="cut", why="the test says so", interrupt=True)


class LateOn:
    """Puts the clock of some ranks forward after an update."""

    def __init__(self, *ranks):
        self.ranks = ranks

    def on_step_begin(self, trainer):
        if trainer.state.global_step == 5 and RANK in self.ranks:
            stop_at.monotonic = lambda: monotonic() + 1000

    def on_teardown(self):
        stop_at.monotonic = monotonic


def run(folder, *plugins, callbacks=(), resume=False, **options):
    def compute_metrics(prediction):
        step = trainer.state.global_step
        assert len(prediction.label_ids) == (5 if step else 2), "the rows of both ranks"
        return {"score": SCORES[max(step, 1) - 1]}

    args = TrainingArguments(
        folder, per_device_train_batch_size=1, per_device_eval_batch_size=1, num_train_epochs=1,
        eval_strategy="steps", eval_steps=1, save_strategy="no", metric_for_best_model="score", greater_is_better=True,
        block_plugins=["console", "logging"], **options,
    )  # fmt: skip
    trainer = Trainer(
        model=tiny_model(), args=args, train_dataset=tiny_dataset(), eval_dataset=tiny_dataset(5),
        compute_metrics=compute_metrics, plugins=plugins, callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    stop = trainer.stop_request
    return [trainer.state.global_step, trainer.outcome, stop.by, stop.why, trainer.state.stopped_by]


def main(folder):
    torch.set_num_threads(1)
    results = {
        "patience": run(folder / "patience", early_stopping_patience=2),
        "callback": run(folder / "callback", callbacks=[EarlyStoppingCallback(2)]),
        "cut": run(folder / "cut", Cut(), early_stopping_patience=2),
        "resumed": run(folder / "cut", early_stopping_patience=2, resume=True),
        "finished": run(folder / "cut", early_stopping_patience=2, resume=True),
        "samples": run(folder / "samples", stop_at={"max_samples": 9}),
        "tokens": run(folder / "tokens", stop_at={"max_tokens": 25}, include_num_input_tokens_seen="all"),
        "one is late": run(folder / "one", LateOn(1), max_time="1m40s"),
        "both are late": run(folder / "both", LateOn(0, 1), max_time="1m40s"),
        "nobody is late": run(folder / "nobody", max_time="1m40s"),
    }
    (folder / f"results-rank{RANK}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
