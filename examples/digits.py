"""Trains a small convolutional network on real handwritten digits, is interrupted, and resumes to the bit.

The data is the UCI set that scikit-learn ships: 1,797 images of 8 x 8 pixels, of which 20 % are held out.
"""

import os
import shutil
import signal

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from trainer_core import Trainer, TrainerCallback, TrainingArguments


class Digits(nn.Module):
    """Two convolutions and a linear layer; gives its loss beside the logits."""

    def __init__(self):
        super().__init__()
        first = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*first, *second, nn.Linear(64 * 4 * 4, 10))

    def forward(self, images, labels):
        logits = self.layers(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Shifted(Dataset):
    """The training images, each moved by up to one pixel at random, differently in every epoch."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].roll(torch.randint(-1, 2, (2,)).tolist(), (1, 2)), self.labels[index]


class PressControlC(TrainerCallback):
    def on_step_end(self, args, state, control, **context):
        if state.global_step == 200:
            os.kill(os.getpid(), signal.SIGINT)


def trainer(folder, callbacks=()):
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    split = train_test_split(images, torch.tensor(labels), test_size=0.2, random_state=0, stratify=labels)
    args = TrainingArguments(
        folder, num_train_epochs=15, per_device_train_batch_size=32, per_device_eval_batch_size=256,
        learning_rate=3e-3, lr_scheduler_type="cosine", warmup_ratio=0.1, logging_steps=15, eval_strategy="epoch",
        save_strategy="epoch", save_total_limit=2, metric_for_best_model="accuracy", load_best_model_at_end=True,
    )  # fmt: skip
    return Trainer(
        model_init=Digits, args=args, train_dataset=Shifted(split[0], split[2]),
        eval_dataset=TensorDataset(split[1], split[3]), callbacks=callbacks,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )  # fmt: skip


if __name__ == "__main__":
    shutil.rmtree("runs/digits", ignore_errors=True)
    trainer("runs/digits/cut", callbacks=[PressControlC]).train()
    resumed, whole = trainer("runs/digits/cut"), trainer("runs/digits/whole")
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    print(f"\naccuracy on the held-out images, best model: {resumed.evaluate()['eval_accuracy']:.2%}")
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    print("interrupted and resumed equals uninterrupted, to the bit:", all(torch.equal(*pair) for pair in pairs))
