"""Two ranks that push; what each of them saw is printed, one line a rank."""

import json
import sys
from pathlib import Path

import torch

from trainer_core import SettingsError, write_model
from trainer_core.testing import only
from trainer_core.testing.tiny import tiny_trainer

torch.set_num_threads(1)
folder, case = Path(sys.argv[1]), sys.argv[2]
options = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_model_id": "user/first", "save_steps": 6}
told = {}
with only("hub_push", "checkpointing"):
    if case == "refused":
        options["hub_model_id"] = "elsewhere/first"
    trainer = tiny_trainer(folder, options=options)
    begun = []

    class Hear:
        def on_push_begin(self, trainer):
            begun.append(trainer.state.global_step)

    trainer.add_callback(Hear())
    if case == "own":

        def save(folder=None):
            if trainer.is_main_rank:
                write_model(trainer.model, Path(folder))
                (Path(folder) / "mine.txt").write_text("mine")
            trainer.ranks.barrier()

        trainer.save_model = save
    try:
        output = trainer.train()
    except SettingsError as error:
        told["refused"] = error.problems
    else:
        told["pushes"] = {name: value for name, value in output.metrics.items() if name.startswith("pushes_")}
        told["step"] = output.global_step
        commit = trainer.push_to_hub("by hand")
        told["commit"] = None if commit is None else commit.commit_message
        if case == "own":
            trainer.save_model(folder / "again")  # the ranks are still in step
    told["begun"] = begun
    sys.stdout.write(f"told {trainer.ranks.rank} {json.dumps(told)}\n")  # one write: the ranks share a pipe
    sys.stdout.flush()
