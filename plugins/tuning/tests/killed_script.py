"""Run by `test_resuming`: a search that kills its own process in the middle of its third trial."""

import os
import signal
import sys

import torch

from trainer_core import Trainer, TrainingArguments
from trainer_core.settings.discovery import installed_names
from trainer_core.testing import TinyModel, tiny_dataset


class Kill:
    def on_step_end(self, trainer):
        if trainer.state.trial_name == "run-2" and trainer.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
args = TrainingArguments(
    sys.argv[1],
    num_train_epochs=2,
    per_device_train_batch_size=4,
    eval_strategy="epoch",
    tuning={"plot": None, "sampler_options": {"n_startup_trials": 1}},
    block_plugins=sorted(installed_names() - {"tuning"}),
)
Trainer(
    model_init=TinyModel,
    args=args,
    train_dataset=tiny_dataset(),
    eval_dataset=tiny_dataset(8, seed=1),
    plugins=[Kill()],
).hyperparameter_search(
    lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}, n_trials=4
)
