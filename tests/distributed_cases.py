"""Trains the same cases on any number of ranks; each rank writes what it saw to `results-rank<r>.json`.

    torchrun --standalone --nproc_per_node 2 tests/distributed_cases.py <folder>

A case is a function of a folder that gives what JSON can hold; an error is a result too. With one process the global
batch is the same: a micro-batch is as large as those of all ranks together.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.test_evaluate import Streaming, accuracy, untimed
from tests.test_step import Overflowing, Summing, averaged, causal_rows, llama, summed
from tests.toys import Classifier, Rows, Stream, named_rows, pairs, table, trainer_for, weights_of
from trainer_core import Signal, TrainerCallback

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
GLOBAL = 6
"""Samples a micro-batch over all ranks."""


def run(folder, model, data, *, given=None, **options):
    trainer = trainer_for(
        folder,
        model,
        data,
        given=given,
        per_device_train_batch_size=GLOBAL // WORLD_SIZE,
        **{"optim": "sgd", **options},
    )
    trainer.train()
    return trainer


def result(trainer):
    return {
        "weights": weights_of(trainer.model).tolist(),
        "loss": trainer.train_metrics["train_loss"],
        "step": trainer.state.global_step,
        "samples": trainer.state.num_samples_seen,
        "epoch": trainer.state.epoch,
        "outcome": trainer.outcome,
    }


def masked(rows=40, tokens=5):
    """Token labels, more of them ignored the later the row; some rows and whole shares of ranks without any."""
    x, labels = table(rows, tokens=tokens)
    generator = torch.Generator().manual_seed(1)
    labels[torch.rand(labels.shape, generator=generator) < torch.linspace(0, 1, rows)[:, None]] = -100
    labels[0:3] = -100
    labels[9:12] = -100
    return Rows(x=x, labels=labels)


class MaskedMean(nn.Module):
    """A mean over targets, written out: of nothing it is 0 / 0, and so is its gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels):
        losses = functional.cross_entropy(self.layer(x).flatten(0, 1), labels.flatten(), reduction="none")
        return losses.sum() / (labels != -100).sum()


class Normed(nn.Module):
    """Has buffers, which ranks must agree on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.layer(self.norm(x))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Partly(nn.Module):
    """Has parameters that no loss reaches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, labels):
        return {"loss": functional.cross_entropy(self.used(x), labels)}


TRAINING = {
    "even": lambda f: run(f, Classifier(), pairs(24)),
    "fused_adamw": lambda f: run(f, Classifier(), pairs(24), optim="adamw_torch_fused", learning_rate=1e-3),
    "uneven": lambda f: run(f, Classifier(), pairs(23), num_train_epochs=2),
    "shuffled": lambda f: run(f, Classifier(), pairs(23), num_train_epochs=2, train_sampling_strategy="random"),
    "tail_of_one": lambda f: run(f, Classifier(), pairs(25), num_train_epochs=2),
    "tail_of_one_in_a_window": lambda f: run(f, Classifier(), pairs(25), gradient_accumulation_steps=3),
    "accumulation": lambda f: run(f, Classifier(), pairs(40), gradient_accumulation_steps=3, num_train_epochs=2),
    "drop_last": lambda f: run(f, Classifier(), pairs(23), dataloader_drop_last=True),
    "clipped": lambda f: run(f, Classifier(), pairs(23), max_grad_norm=0.01, gradient_accumulation_steps=2),
    "ignored_labels": lambda f: run(f, Classifier(), masked(), num_train_epochs=2, gradient_accumulation_steps=2),
    "ignored_labels_one_batch": lambda f: run(f, Classifier(), masked()),
    "masked_mean": lambda f: run(f, MaskedMean(), masked()),
    "workers": lambda f: run(f, Classifier(), pairs(23), dataloader_num_workers=1),
    "stream": lambda f: run(f, Classifier(), Stream(named_rows(25)), max_steps=6),
    "stream_in_windows": lambda f: run(
        f, Classifier(), Stream(named_rows(25)), max_steps=4, gradient_accumulation_steps=2
    ),
    "count_used": lambda f: run(f, Classifier(), masked(), kind=TokenSumming),
    "count_used_by_function": lambda f: run(f, Classifier(), named_rows(23), given={"compute_loss_func": summed}),
    "count_ignored_by_function": lambda f: run(f, Classifier(), named_rows(23), given={"compute_loss_func": averaged}),
    "bf16": lambda f: run(f, Classifier(), pairs(23), bf16=True),
    "checkpointed": lambda f: run(f, Classifier(), pairs(23), activation_checkpointing=True),
    "static_graph": lambda f: run(f, Classifier(), pairs(25), ddp_static_graph=True, num_train_epochs=2),
    "causal": lambda f: run(f, seeded_llama(), causal_rows(), num_train_epochs=2),
}


class TokenSumming(Summing):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["x"])["logits"]
        loss = functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum")
        return loss / num_items_in_batch


def seeded_llama():
    torch.manual_seed(0)
    return llama()


def local_average(folder):
    """Without counting over ranks, the gradient is the mean of the ranks' own means."""
    return result(run(folder, Classifier(), masked(), average_tokens_across_devices=False, max_steps=1))


def local_average_with_tail(folder):
    return result(run(folder, Classifier(), pairs(25), average_tokens_across_devices=False))


def row_by_row(folder):
    """What each rank evaluated, and what rank 0 gets of it."""
    found = {}
    for rows in (1, 7, 22, 23):
        trainer = trainer_for(folder, Classifier(), given={"compute_metrics": accuracy}, per_device_eval_batch_size=4)
        for name, data in (("map", named_rows(rows)), ("stream", Stream(named_rows(rows)))):
            output = trainer.predict(data)
            found[f"{name}_{rows}"] = {
                "predictions": output.predictions.tolist(),
                "labels": output.label_ids.tolist(),
                "metrics": untimed(output.metrics),
            }
    return found


def unjoined(folder):
    trainer = trainer_for(folder, Classifier(), eval_do_concat_batches=False, per_device_eval_batch_size=4)
    found = {}
    for name, data in (("map", named_rows(11)), ("stream", Stream(named_rows(11)))):
        output = trainer.predict(data)
        found[name] = [batch.tolist() for batch in output.predictions]
    return found


def ragged(folder):
    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"a": torch.ones(len(x), int(x.max()) + 1), "b": (x, x[:, None])}

    output = trainer_for(folder, Ragged(), per_device_eval_batch_size=2).predict(Rows(x=torch.arange(7)))
    a, b = output.predictions
    return {"shape": list(a.shape), "filled": (a == 1).sum(1).tolist(), "b": [part.tolist() for part in b]}


def streamed(folder):
    metric = Streaming()
    given = {"compute_metrics": metric}
    trainer = trainer_for(folder, Classifier(), given=given, batch_eval_metrics=True, per_device_eval_batch_size=3)
    metrics = untimed(trainer.evaluate(named_rows(13)))
    few = untimed(trainer.evaluate(named_rows(1)))
    return {"metrics": metrics, "few": few, "calls": metric.calls}


def metric_objects(folder):
    """A metric of torchmetrics adds up ranks by itself, unless it is kept from it."""
    from tests.test_metrics import Counting, collection

    found = {}
    for name, rows in (("many", 13), ("one", 1)):
        metrics = collection()
        metrics.add_metrics({"rows": Counting()})
        given = {"compute_metrics": metrics}
        trainer = trainer_for(folder, Classifier(), given=given, per_device_eval_batch_size=3)
        found[name] = untimed(trainer.evaluate(named_rows(rows)))
        found[f"{name}_from_stream"] = untimed(trainer.evaluate(Stream(named_rows(rows))))
    return found


def tokens(folder):
    from tests.test_tally import Reader, sentences

    found = {}
    for counted in ("all", "non_padding"):
        seven = Rows(**{name: column[:7] for name, column in sentences().columns.items()})  # one row for two ranks
        for name, data in (("map", seven), ("stream", Stream(seven))):
            options = {"include_num_input_tokens_seen": counted, "max_steps": 4, "gradient_accumulation_steps": 1}
            trainer = run(folder, Reader(), data, **options)
            found[f"{counted}_{name}"] = trainer.state.num_input_tokens_seen
    return found


def texts(folder):
    from tests.test_evaluate import Shaped, rich

    found = {}
    for name, rows in (("map", Rows(x=torch.arange(7.0))), ("stream", Stream(Rows(x=torch.arange(7.0))))):
        output = trainer_for(folder, Shaped(rich), per_device_eval_batch_size=2).predict(rows)
        found[name] = output.predictions[1].tolist()
    return found


def evaluated_while_training(folder):
    trainer = run(
        folder,
        Normed(),
        pairs(24),
        given={"eval_dataset": named_rows(13), "compute_metrics": accuracy},
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        per_device_eval_batch_size=3,
    )
    after = untimed(trainer.evaluate())
    with torch.no_grad():
        trainer.model.eval()
        x, labels = table(13)
        own = trainer.model(x, labels)["loss"].item()
    return {
        "rows": [untimed(row) for row in trainer.state.log_history if "eval_loss" in row],
        "after": after,
        "own": own,
        "buffers": [buffer.tolist() for buffer in trainer.model.buffers()],
        **result(trainer),
    }


class StoppingOneRank:
    def on_step_end(self, trainer):
        if trainer.state.global_step == 3 and trainer.ranks.rank == trainer.ranks.world_size - 1:
            trainer.request(Signal.STOP, by="clock", why="time is up", local=True)


def evaluated_after_training(folder):
    """The buffers of ranks differ after their own last batches; all evaluate, and save, those of the main rank."""
    trainer = run(folder, Normed(), pairs(23), per_device_eval_batch_size=3)
    metrics = untimed(trainer.evaluate(named_rows(13)))
    x, labels = table(13)
    trainer.model.eval()
    with torch.no_grad():
        own = trainer.model(x, labels)["loss"].item()
    return {"loss": metrics["eval_loss"], "own": own}


class CallbackOfOneRank(TrainerCallback):
    def on_step_end(self, args, state, control, **context):
        control.should_training_stop = state.global_step == 3 and not state.is_world_process_zero


def stopped_by_a_callback_of_one_rank(folder):
    trainer = run(folder, Classifier(), pairs(240), given={"callbacks": [CallbackOfOneRank()]})
    return {**result(trainer), "by": trainer.stop_request.by}


class RowOfOneRank(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        return {"should_log": state.global_step == 7 and not state.is_world_process_zero}


def logged_for_a_callback_of_one_rank(folder):
    trainer = run(folder, Classifier(), pairs(240), given={"callbacks": [RowOfOneRank()]})
    return {"rows": [row["step"] for row in trainer.state.log_history if "loss" in row]}


def stopped_by_one_rank(folder):
    trainer = run(folder, Classifier(), pairs(240), given={"plugins": [StoppingOneRank()]})
    return {**result(trainer), "by": trainer.stop_request.by, "explained": trainer.explain(trainer.state.global_step)}


class CountingHooks:
    def __init__(self):
        self.told = []

    def on_log(self, logs):
        self.told.append(sorted(logs))

    def on_step_end(self, trainer):
        self.told.append(trainer.state.global_step)


def hooks_and_journal(folder):
    plugin = CountingHooks()
    trainer = run(folder, Classifier(), pairs(12), given={"plugins": [plugin]})
    return {"told": plugin.told, "journal": trainer.journal_path.name, "main": trainer.is_main_rank}


def not_finite(folder):
    x, labels = table(24)
    x[17] = torch.nan
    run(folder, Classifier(), TensorDataset(x, labels))


def not_finite_skipped(folder):
    x, labels = table(24)
    x[17] = torch.nan
    return result(run(folder, Classifier(), TensorDataset(x, labels), nan_policy="skip"))


def without_the_bad_step(folder):
    x, labels = table(24)
    good = [row for row in range(24) if not 12 <= row < 18]
    options = {"lr_scheduler_type": "constant"}
    whole = run(folder, Classifier(), TensorDataset(x[good], labels[good]), **options)
    x[17] = torch.nan
    skipped = run(folder, Classifier(), TensorDataset(x, labels), nan_policy="skip", **options)
    return {"equal": torch.equal(weights_of(whole.model), weights_of(skipped.model))}


def no_target_at_all(folder):
    x, labels = table(12)
    labels[:] = -100
    run(folder, Classifier(), TensorDataset(x, labels))


def fp16_overflow(folder):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return result(run(folder, Overflowing(), TensorDataset(x, x.sum(1)), fp16=True, max_steps=1))


def twice(folder):
    trainer = run(folder, Classifier(), pairs(12))
    trainer.train()
    return result(trainer)


def empty_evaluation(folder):
    trainer_for(folder, Classifier()).evaluate(Stream(named_rows(0)))


def saved_once(folder):
    trainer = run(folder, Classifier(), pairs(12))
    trainer.save_model(folder / "saved")
    return sorted(path.name for path in (folder / "saved").iterdir())


def splitting_to_find_a_batch_size(folder):
    run(folder, Classifier(), pairs(12), auto_find_batch_size=True)


def connected(folder):
    """How the ranks talk, as the run was told, and what a later run may still say of it."""

    def told(**options):
        ddp = run(folder, Normed(), pairs(12), **options).model_wrapped
        group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        return {
            "backend": torch.distributed.get_backend(),
            "timeout": group.options._timeout.total_seconds(),
            "bucket_megabytes": ddp.bucket_bytes_cap / 2**20,
            "broadcast_buffers": ddp.broadcast_buffers,
            "static_graph": ddp.static_graph,
        }

    options = {"ddp_backend": "gloo", "ddp_timeout": 77, "ddp_bucket_cap_mb": 3, "ddp_broadcast_buffers": False}
    found = {"first": told(**options), "second": told(ddp_timeout=66, ddp_static_graph=True)}
    try:
        told(ddp_backend="nccl")
    except Exception as error:
        return {**found, "other": f"{type(error).__name__}: {error}"}
    return found


def looking_for_unused_parameters(folder):
    return run(folder, Partly(), pairs(24), ddp_find_unused_parameters=True).state.global_step


def not_looking_for_unused_parameters(folder):
    return run(folder, Partly(), pairs(24)).state.global_step


def blind(folder):
    """Before the trainer, the script makes an Accelerator, which without an accelerator believes to be alone."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator()
    try:
        run(folder, Classifier(), pairs(12))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


OTHERS = [
    local_average,
    local_average_with_tail,
    row_by_row,
    unjoined,
    ragged,
    streamed,
    metric_objects,
    tokens,
    texts,
    evaluated_while_training,
    evaluated_after_training,
    stopped_by_one_rank,
    hooks_and_journal,
    not_finite,
    not_finite_skipped,
    without_the_bad_step,
    no_target_at_all,
    fp16_overflow,
    twice,
    empty_evaluation,
    saved_once,
    stopped_by_a_callback_of_one_rank,
    logged_for_a_callback_of_one_rank,
    splitting_to_find_a_batch_size,
]

ALONE = [connected, looking_for_unused_parameters, not_looking_for_unused_parameters]
"""Cases that change what the ranks of a process share, or leave it unfit for others."""

EACH_TIME = {*TRAINING, *(case.__name__ for case in OTHERS)}
CASES = {
    "blind": blind,  # before the first case that makes ranks see each other
    **{name: lambda folder, case=case: result(case(folder)) for name, case in TRAINING.items()},
    **{case.__name__: case for case in [*OTHERS, *ALONE]},
}


def main(folder, names=()):
    results = {}
    for name, case in CASES.items():
        if name not in (names or EACH_TIME):
            continue
        print(f"rank {RANK}: {name}", flush=True)
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            results[name] = case(Path(folder) / name)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    path = Path(folder) / f"results-rank{RANK}.json"
    path.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
