"""What is said before and after a run, as whole texts."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console as RichConsole

from trainer_core import Plan, Signal, TrainingArguments
from trainer_core.console.plaintext import PlainWriter
from trainer_core.console.report import Record, closing, error_in_words, opening, resume_call, settings_in_words
from trainer_core.console.sparkline import ASCII_LEVELS, BLOCKS
from trainer_core.console.terminal import report_view
from trainer_core.phases import Phase
from trainer_core.state import Request, TrainerState

BLOCKED = ["logging", "checkpointing"]


class Digits:
    """Stands for a model; its name is shown."""


def plan():
    plan = Plan(4_810, 4_810, 1_437, 32, 1, 1, 45, 45, 6.0, 270, last_update_samples=29)
    plan.learning_rates = [("at the start", 0, 0.002)]
    plan.schedule("evaluation", "eval_strategy", [45, 90, 135, 180, 225, 270])
    plan.schedule("save", "save_strategy", [90, 180, 270])
    return plan


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer whose run is over, with fixed numbers, writing to `runs/digits` in the working directory."""
    monkeypatch.chdir(tmp_path)
    losses = [2.3, 1.9, 1.4, 1.0, 0.7, 0.5, 0.4, 0.3]
    history = [{"loss": loss, "step": 30 * (place + 1)} for place, loss in enumerate(losses)]
    history.append({"eval_loss": 0.25, "eval_accuracy": 0.975, "eval_runtime": 0.2, "step": 270, "epoch": 6.0})
    state = TrainerState(
        epoch=6.0, global_step=270, max_steps=270, num_train_epochs=6, log_history=history, last_eval_step=270,
        best_metric=0.98, best_global_step=225, best_model_checkpoint="checkpoint-225",
    )  # fmt: skip
    seconds = {Phase.INIT: 0.5, Phase.EPOCH: 0.01, Phase.STEP: 30.0, Phase.EVAL: 8.0, Phase.SAVE: 1.5, Phase.STOP: 0.02}
    loop = SimpleNamespace(
        journal=SimpleNamespace(seconds=seconds), stepper=SimpleNamespace(guard=SimpleNamespace(num_skipped=0))
    )
    members = {
        name: SimpleNamespace(name=name, plugin=None, seconds=spent, failures=0, is_off=False)
        for name, spent in {"logging": 0.1, "checkpointing": 3.0, "console": 0.3}.items()
    }
    return SimpleNamespace(
        args=TrainingArguments(
            "runs/digits", block_plugins=BLOCKED, learning_rate=2e-3, seed=7, metric_for_best_model="accuracy",
            eval_strategy="epoch", console={"refresh_seconds": 0.5},
        ),
        model=Digits(), ranks=SimpleNamespace(device=torch.device("cpu")), state=state, last_plan=plan(),
        outcome="completed", stop_request=None, loaded_best_from=Path("runs/digits/checkpoint-225"),
        train_metrics={"train_loss": 0.9123, "train_samples_per_second": 1523.4, "train_steps_per_second": 48.21},
        running=SimpleNamespace(loop=loop), bus=SimpleNamespace(members=members),
    )  # fmt: skip


@pytest.fixture
def record():
    return Record(checkpoint=Path("runs/digits/checkpoint-270"), checkpoint_step=270)


def on_terminal(report, width=100):
    console = RichConsole(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(report_view(report, "utf-8"))
    return [line.rstrip() for line in console.export_text().splitlines()]


def in_plain(report, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    PlainWriter(stream).report(report)
    return stream.buffer.getvalue().decode(encoding).splitlines()


def test_the_header_is_the_plan_with_the_settings_that_were_given(trainer):
    assert on_terminal(opening(trainer, Record())) == [
        "Training Digits on cpu",
        "  output         runs/digits",
        "  model          4,810 parameters, 4,810 trained",
        "  batch          32 a micro-batch × 1 accumulated × 1 rank = 32 samples an update",
        "  data           1,437 samples, 45 micro-batches an epoch on each rank; the last update of an epoch",
        "                 has 29 samples",
        "  updates        270 (45 an epoch × 6 epochs)",
        "  learning rate  0.002 at the start (step 0)",
        "  evaluation     after step 45, 90, 135, 180, 225, 270, by eval_strategy",
        "  save           after step 90, 180, 270, by save_strategy",
        "  settings       seed=7, block_plugins=['logging', 'checkpointing'], learning_rate=0.002,",
        "                 eval_strategy='epoch', metric_for_best_model='accuracy',",
        "                 console.refresh_seconds=0.5 (keyword)",
    ]


def test_the_header_of_a_resumed_run_says_where_it_goes_on(trainer, record):
    record.first_step = 90
    assert ("resumed", "from runs/digits/checkpoint-270, 90 updates are done") in opening(trainer, record).lines


def test_settings_beyond_six_are_counted_and_defaults_are_left_out(tmp_path):
    args = TrainingArguments(
        tmp_path, block_plugins=BLOCKED, seed=1, max_steps=5, weight_decay=0.1, warmup_ratio=0.1, adam_beta1=0.8,
        adam_beta2=0.9, max_grad_norm=2.0,
    )  # fmt: skip
    text = settings_in_words(args)
    assert text.endswith("(keyword), +2 more")
    assert text.count("=") == 6


def test_the_summary_of_a_completed_run(trainer, record):
    assert on_terminal(closing(trainer, record, levels=BLOCKS)) == [
        "✓ Completed 270 steps, 6 epochs in 40 s",
        "  loss        2.300 █▇▅▃▂▂▁▁ 0.3000",
        "  training    loss 0.9123  1,523 samples/s  48.2 steps/s",
        "  evaluation  loss 0.2500  accuracy 0.9750  after step 270",
        "  best        eval_accuracy 0.9800 after step 225, in checkpoint-225, its weights are loaded",
        "  phases      init 0.50 s (1%), step 30 s (75%), eval 8.0 s (20%), save 1.5 s (4%), 2 more 0.03 s",
        "  plugins     checkpointing 3.0 s (7%), console 0.30 s (1%), 1 more 0.10 s",
        "  checkpoint  runs/digits/checkpoint-270",
    ]


def test_the_summary_in_plain_lines_is_the_same(trainer, record):
    report = closing(trainer, record, levels=BLOCKS)
    assert in_plain(report) == on_terminal(report)


def test_the_summary_in_ascii(trainer, record):
    lines = in_plain(closing(trainer, record, levels=ASCII_LEVELS), encoding="ascii")
    assert lines[:2] == ["ok: Completed 270 steps, 6 epochs in 40 s", "  loss        2.300 #*=-..__ 0.3000"]


def test_a_stopped_run_says_who_stopped_it_and_why_and_offers_no_call_that_goes_on(trainer, record):
    trainer.outcome, trainer.state.global_step = "stopped", 180
    trainer.stop_request = Request(Signal.STOP, "early_stopping", "no improvement in 3 evaluations")
    report = closing(trainer, record, levels=BLOCKS)
    assert report.title == "✓ Stopped by early_stopping at step 180 of 270 after 40 s: no improvement in 3 evaluations"
    assert "resume" not in dict(report.lines)


def test_an_interrupted_run_says_that_it_is_saved_and_how_to_go_on(trainer, record):
    trainer.outcome, trainer.state.global_step, record.checkpoint_step = "interrupted", 180, 180
    trainer.stop_request = Request(Signal.STOP, "SIGINT", "the user asks to end", interrupt=True)
    report = closing(trainer, record, levels=BLOCKS)
    assert report.title == "■ Interrupted by SIGINT at step 180 of 270 after 40 s, saved"
    assert report.lines[-1] == ("resume", "trainer.train(resume_from_checkpoint=True) goes on after step 180")


def test_an_interrupted_run_that_could_not_save_says_so(trainer):
    trainer.outcome, trainer.state.global_step = "interrupted", 180
    trainer.stop_request = Request(Signal.STOP, "SIGINT", "the user asks to end", interrupt=True)
    report = closing(trainer, Record(), levels=BLOCKS)
    assert report.title.endswith(", not saved")
    assert "resume" not in dict(report.lines)


def test_a_failed_run_says_the_error_in_one_line_and_how_to_go_on(trainer, record):
    trainer.outcome, trainer.state.global_step = "failed", 200
    record.error, record.checkpoint_step = ValueError("the first line\nthe second"), 180
    report = closing(trainer, record, levels=BLOCKS)
    assert report.title == "✗ Failed at step 200 of 270 after 40 s: ValueError: the first line"
    assert dict(report.lines)["resume"] == "trainer.train(resume_from_checkpoint=True) goes on after step 180"
    assert "training" not in dict(report.lines)  # the metrics are those of an earlier run


def test_a_run_that_is_stopped_at_once_is_interrupted(trainer, record):
    trainer.outcome, record.error = "failed", KeyboardInterrupt("SIGINT: stopped at once")
    report = closing(trainer, record, levels=BLOCKS)
    assert report.title == "■ Interrupted at step 270 of 270 after 40 s: SIGINT: stopped at once"


def test_a_checkpoint_elsewhere_is_resumed_by_its_path(trainer):
    trainer.outcome = "failed"
    call = resume_call(trainer, Record(checkpoint=Path("/other/checkpoint-9")))
    assert call == "trainer.train(resume_from_checkpoint='/other/checkpoint-9')"


def test_each_dataset_of_the_last_evaluation_has_a_line(trainer, record):
    row = {"eval_a_loss": 0.1, "eval_a_runtime": 0.1, "step": 270}
    trainer.state.log_history += [row, {"eval_b_loss": 0.2, "eval_b_runtime": 0.1, "step": 270}]
    del trainer.state.log_history[-3]
    lines = dict(closing(trainer, record, levels=BLOCKS).lines)
    assert lines["evaluation a"] == "loss 0.1000  after step 270"
    assert lines["evaluation b"] == "loss 0.2000  after step 270"


def test_skipped_updates_and_plugins_that_failed_are_not_silent(trainer, record):
    trainer.running.loop.stepper.guard.num_skipped = 2
    trainer.bus.members["logging"].failures, trainer.bus.members["logging"].is_off = 3, True
    lines = dict(closing(trainer, record, levels=BLOCKS).lines)
    assert lines["skipped"] == "2 updates whose loss was not finite"
    assert lines["trouble"] == "logging failed 3 times, it was switched off"


def test_errors_are_one_short_line():
    assert error_in_words(KeyError()) == "KeyError"
    assert error_in_words(None) == "unknown"
    assert len(error_in_words(ValueError("x" * 1000))) == 200


def test_a_plugin_has_its_say_in_the_summary(trainer, record):
    notes = [("pushed", "3, one more is queued")]
    trainer.bus.members["mine"] = SimpleNamespace(
        name="mine", plugin=SimpleNamespace(closing_notes=lambda: iter(notes)), seconds=0.0, failures=0, is_off=False
    )
    lines = in_plain(closing(trainer, record, levels=BLOCKS))
    assert "  pushed      3, one more is queued" in lines


def test_the_rate_of_tokens_is_said_where_they_are_counted(trainer):
    trainer.train_metrics["train_tokens_per_second"] = 98765.4
    lines = dict(closing(trainer, Record(), levels=BLOCKS).lines)
    assert lines["training"] == "loss 0.9123  1,523 samples/s  48.2 steps/s  98,765 tokens/s"
