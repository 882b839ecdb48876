"""What the guide's reader has, and its samples leave undefined: a model, data, and what belongs to them."""

import random

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerFast

WORDS = [f"word{number}" for number in range(60)]


def make_tokenizer():
    """Gives a tokenizer of whole words."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def make_model():
    """Gives a small BERT with three labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=62, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            max_position_embeddings=16, num_labels=3,
        )  # fmt: skip
        return BertForSequenceClassification(config)


def make_dataset(tokenizer, rows):
    """Gives sentences of 3 to 8 words, labelled by their first word, for training and a few for testing."""

    def split(length, seed):
        chance = random.Random(seed)
        sentences = [chance.choices(WORDS, k=chance.randint(3, 8)) for _ in range(length)]
        texts = tokenizer([" ".join(sentence) for sentence in sentences], return_token_type_ids=False)
        return Dataset.from_dict({**texts, "label": [int(sentence[0][4:]) % 3 for sentence in sentences]})

    return DatasetDict(train=split(rows, 0), test=split(16, 1))


def compute_metrics(prediction):
    """Gives the share of sentences with the right label."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def world(rows):
    """Gives the names that the samples use."""
    tokenizer = make_tokenizer()
    return {
        "model": make_model(),
        "dataset": make_dataset(tokenizer, rows),
        "tokenizer": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": compute_metrics,
    }
