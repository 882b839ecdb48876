"""Scripts that the guide's commands start; the guide shows the commands alone."""

MY_APP = """#!{python}
import logging
import sys

import torch

from trainer_core import Trainer, TrainingArguments

args = TrainingArguments.from_command_line()


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        return {{"loss": self.layer(x).square().mean()}}


class Saying:
    def on_train_begin(self, trainer):
        for level in ("info", "warning", "error"):
            getattr(logging.getLogger("trainer_core.app"), level)("%s of rank %d", level, trainer.ranks.rank)


data = [{{"x": torch.ones(2)}} for _ in range(4)]
Trainer(Line(), args, train_dataset=data, callbacks=[Saying]).train()
sys.stdout.write(f"level {{args.get_process_log_level()}}\\n")  # in one piece: two processes write to one pipe
sys.stdout.flush()
"""

RUN_GLUE = """
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, {tests!r})
from guide_world import compute_metrics, make_dataset, make_tokenizer
from trainer_core import HfArgumentParser, Trainer, TrainingArguments

torch.set_num_threads(1)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={{"help": "Folder or name of the pretrained model."}})


@dataclass
class DataArguments:
    task_name: str = field(metadata={{"help": "The task."}})
    max_seq_length: int = 128


parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
model_args, data_args, args = parser.parse_args_into_dataclasses()
dataset = make_dataset(make_tokenizer(), 64)
trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path, local_files_only=True),
    args=args,
    train_dataset=dataset["train"] if args.do_train else None,
    eval_dataset=dataset["test"] if args.do_eval else None,
    tokenizer=make_tokenizer(),
    compute_metrics=compute_metrics,
)
trainer.train()
metrics = trainer.evaluate()
told = dict(steps=trainer.state.global_step, world=trainer.ranks.world_size, bf16=args.bf16, task=data_args.task_name,
            length=data_args.max_seq_length, has_accuracy="eval_accuracy" in metrics)
if trainer.is_world_process_zero():
    Path("told.json").write_text(json.dumps(told))
"""
