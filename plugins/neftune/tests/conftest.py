"""What the tests of this plugin share: small models that embed tokens, and runs of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from trainer_core import Trainer, TrainingArguments


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


class Sentences(Dataset):
    """24 sentences of 2 to 9 tokens, padded to 9."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        length = 2 + index % 8
        tokens = torch.arange(9) * (index + 3) % 20 + 1
        mask = (torch.arange(9) < length).long()
        return {"input_ids": tokens * mask, "attention_mask": mask, "labels": torch.tensor(index % 2)}


class Net(nn.Module):
    """Embeds, averages over tokens, classifies; has dropout, so that random states matter."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.tokens = nn.Embedding(32, 16, padding_idx=0)
            self.head = nn.Linear(16, 2)
        self.drop = nn.Dropout(0.2)
        self.embedded = []

    def get_input_embeddings(self):
        return self.tokens

    def forward(self, input_ids, attention_mask=None, labels=None):
        embedded = self.tokens(input_ids)
        self.embedded.append((self.training, embedded.detach() - self.tokens.weight[input_ids].detach()))
        logits = self.head(self.drop(embedded.mean(1)))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Unnamed(Net):
    """The same without saying which its input embeddings are."""

    get_input_embeddings = None


class Small:
    Net, Unnamed, Sentences = Net, Unnamed, Sentences

    @staticmethod
    def trainer(folder, model=None, kind=Trainer, callbacks=(), **options):
        settled = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "neftune_noise_alpha": 5.0,
            "save_steps": 100,
        }
        args = TrainingArguments(folder, **{**settled, "disable_tqdm": True, **options})
        data = {"train_dataset": Sentences(), "eval_dataset": Sentences()}
        return kind(model=model if model is not None else Net(), args=args, callbacks=callbacks, **data)


@pytest.fixture
def small():
    return Small
