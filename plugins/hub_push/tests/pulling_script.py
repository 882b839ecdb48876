"""Run by `test_pulling` on two ranks: resumes from a repository, and writes what each rank went on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainer_core import CheckpointError, Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model


def main(output_dir: Path, source: str) -> None:
    args = TrainingArguments(
        output_dir, max_steps=4, per_device_train_batch_size=4, block_plugins=["console"], use_cpu=True
    )
    trainer = Trainer(model=tiny_model(), args=args, train_dataset=tiny_dataset())
    try:
        trainer.train(resume_from_checkpoint=source)
        told = {"from": trainer.resumed_from.name, "step": trainer.state.global_step}
    except CheckpointError as error:
        told = {"error": str(error)}
    (output_dir / f"rank-{trainer.ranks.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
