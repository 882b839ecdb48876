from types import SimpleNamespace

import pytest

from trainer_core_hub_push import HubPushSettings
from trainer_core_hub_push.content import WEIGHTS, model_files, pushes_of_save
from trainer_core_hub_push.entries import Push


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with everything that a checkpoint may hold."""
    folder = tmp_path / "checkpoint-8"
    for name in (
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "second/adapter_model.safetensors",
        "tokenizer.json",
        "README.md",
        "manifest.json",
        "state.json",
        "state.safetensors",
        "rank-00000.json",
        "rank-00001.safetensors",
        "log_history.jsonl",
        ".hidden/file",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def pushes(checkpoint, strategy, **options):
    settings = HubPushSettings(push=True, model_id="user/first", strategy=strategy, **options)
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir="runs/first", save_strategy="steps"),
        state=SimpleNamespace(global_step=8, epoch=0.5),
    )
    return list(pushes_of_save(trainer, settings, checkpoint))


MODEL = [
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "second/adapter_model.safetensors",
    "tokenizer.json",
]


def test_the_model_is_all_but_what_only_a_resumed_run_reads(checkpoint):
    assert model_files(checkpoint) == MODEL


def test_nothing_is_pushed_of_a_save_with_the_strategy_end(checkpoint):
    assert pushes(checkpoint, "end") == []


def test_a_save_pushes_the_model_to_the_root_where_old_weights_go(checkpoint):
    ((push, files),) = pushes(checkpoint, "every_save", revision="trial", private_repo=True)
    assert push == Push(
        "user/first",
        "Training in progress, step 8",
        key="model",
        replaces=WEIGHTS,
        revision="trial",
        private=True,
        step=8,
    )
    assert files == {name: checkpoint / name for name in MODEL}


@pytest.mark.parametrize(
    ("strategy", "path", "key"),
    [("checkpoint", "last-checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-8", "")],
)
def test_a_checkpoint_is_pushed_with_all_its_files_in_place_of_the_one_before(checkpoint, strategy, path, key):
    _, (push, files) = pushes(checkpoint, strategy)
    assert push == Push(
        "user/first",
        "Training in progress, step 8, checkpoint",
        path=path,
        key=key,
        replaces=(f"{path}/*",),
        step=8,
    )
    everything = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    assert files == everything


def test_no_push_replaces_another_when_all_are_wanted(checkpoint):
    assert [push.key for push, _ in pushes(checkpoint, "checkpoint", always_push=True)] == ["", ""]
