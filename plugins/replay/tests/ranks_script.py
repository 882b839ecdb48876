"""Run by `test_ranks` on two ranks: trains into a folder, as the arguments say.

torchrun --standalone --nproc_per_node 2 ranks_script.py <folder> <rank whose loss is scaled, or -1>
"""

from __future__ import annotations

import os
import sys

import torch

from trainer_core import Trainer, TrainingArguments
from trainer_core.testing import tiny_dataset, tiny_model


class Scaled(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        loss = super().compute_loss(model, inputs)
        is_changed = int(os.environ.get("RANK", "0")) == int(sys.argv[2]) and self.state.global_step == 5
        return loss * (1 + 1e-6) if is_changed else loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    args = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=4, save_steps=4,
        digest_steps=1, digest_parameter_steps=2, block_plugins=["console"],
    )  # fmt: skip
    Scaled(tiny_model(), args, train_dataset=tiny_dataset(23)).train()
