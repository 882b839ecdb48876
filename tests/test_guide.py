"""Every sample of the Hugging Face Trainer guide runs: only its import is changed, and what it leaves open supplied."""

import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
import yaml

from tests.guide_scripts import MY_APP, RUN_GLUE
from tests.guide_world import make_model, world
from trainer_core_hub_push.loopback import LoopbackHub

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
SAMPLES = re.findall(
    r"^## \d+\. .*?```\w+\n(.*?)```", (HERE / "guide_samples.md").read_text(), re.DOTALL | re.MULTILINE
)
TOKEN = "hf_guide"


def test_the_guide_has_15_samples():
    assert len(SAMPLES) == 15


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine at which the reader is logged in, and a folder of the reader's own."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    with LoopbackHub({TOKEN: "reader"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def run(number, names, **replacements):
    """Runs a sample in the reader's names, with what it leaves out (`...`) filled in."""
    source = SAMPLES[number - 1]
    for old, new in replacements.items():
        source = source.replace({"gap": "..."}[old], new)
    exec(compile(source, f"sample {number}", "exec"), names)


# Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_2_to_4_train_push_and_resume(hub):
    names = world(rows=8000)
    run(2, names)
    run(3, names)
    assert (names["trainer"].state.global_step, names["trainer"].outcome) == (1000, "completed")
    assert {"README.md", "config.json", "model.safetensors"} <= hub.repo("reader/your-model").files().keys()
    run(4, names)
    assert Path(names["trainer"].resumed_from).resolve() == Path("your-model/checkpoint-1000").resolve()
    assert len([row for row in names["trainer"].state.log_history if "eval_accuracy" in row]) == 2


def arguments(number, names, **more):
    """Makes the arguments with the option that a sample shows in the middle of the text."""
    source = SAMPLES[1].replace("push_to_hub=True,", f"push_to_hub=True,\n    {SAMPLES[number - 1].strip()},")
    exec(compile(source, f"sample {number}", "exec"), names)
    names["training_args"] = names["training_args"].replace(**more)


def test_sample_5_pushes_the_newest_checkpoint_from_which_a_run_resumes(hub):
    names = world(rows=64)
    arguments(5, names)
    run(3, names)
    files = hub.repo("reader/your-model").files()
    assert "last-checkpoint/manifest.json" in files
    pulled = world(rows=64)
    arguments(5, pulled, output_dir="elsewhere", hub_model_id="reader/your-model", num_train_epochs=3)
    exec(SAMPLES[2].replace("trainer.train()", "trainer.train('reader/your-model')"), pulled)
    assert pulled["trainer"].state.global_step == 12


def test_sample_6_is_understood_in_its_misspelling_and_pushes_every_checkpoint(hub, caplog):
    names = world(rows=64)
    arguments(6, names)
    assert names["training_args"].hub_strategy == "all_checkpoints"
    told = [record.getMessage() for record in caplog.records if "hug_strategy" in record.getMessage()]
    assert len(told) == 1
    assert "hub_strategy" in told[0]
    run(3, names)
    files = hub.repo("reader/your-model").files()
    assert {name.partition("/")[0] for name in files if name.startswith("checkpoint-")} == {
        "checkpoint-4",
        "checkpoint-8",
    }


def test_sample_7_trains_and_evaluates_with_a_loss_of_its_own(hub):
    names = {**world(rows=64), "torch": torch}
    run(2, names)
    run(7, names)
    exec(SAMPLES[2].replace("trainer = Trainer(", "trainer = CustomTrainer("), names)
    trainer = names["trainer"]
    assert type(trainer).__name__ == "CustomTrainer"
    assert trainer.state.global_step == 8
    assert {"eval_loss", "eval_accuracy"} <= trainer.evaluate().keys()


def test_samples_8_and_9_stop_after_ten_steps(hub):
    names = world(rows=640)
    run(2, names)
    run(8, names)
    run(9, names)
    names["trainer"].train()
    assert (names["trainer"].state.global_step, names["trainer"].outcome) == (10, "stopped")
    assert names["trainer"].stop_request.by == "EarlyStoppingCallback"


@pytest.fixture
def levels():
    """Puts the levels back that the sample sets for the whole process."""
    import datasets
    import transformers

    kinds = (datasets.utils.logging, transformers.utils.logging)
    before = [kind.get_verbosity() for kind in kinds]
    yield kinds
    for kind, level in zip(kinds, before, strict=True):
        kind.set_verbosity(level)


def test_sample_10_sets_the_level_of_every_library(hub, levels):
    import datasets
    import transformers

    import trainer_core

    own = world(rows=64)
    training_args = trainer_core.TrainingArguments("your-model")
    names = own | {
        "logging": logging,
        "sys": sys,
        "datasets": datasets,
        "transformers": transformers,
        "__name__": "mine",
    }
    names |= {"training_args": training_args, "Trainer": trainer_core.Trainer}
    run(10, names, gap="model=model, args=training_args, train_dataset=dataset['train']")
    assert names["log_level"] == logging.INFO
    assert logging.getLogger("mine").level == logging.INFO
    assert [kind.get_verbosity() for kind in levels] == [logging.INFO, logging.INFO]
    assert isinstance(names["trainer"], trainer_core.Trainer)


def test_sample_12_trains_with_noise_and_leaves_none(hub):
    names = world(rows=64)
    source = SAMPLES[11].replace("TrainingArguments(...", "TrainingArguments('your-model'")
    data = "model=model, train_dataset=dataset['train'], data_collator=data_collator"
    exec(source.replace("Trainer(...", f"Trainer({data}"), names)
    assert names["training_args"].neftune_noise_alpha == 0.1
    hooks = []

    class Looking:
        def on_step_end(self, trainer):
            hooks.append(len(trainer.model.get_input_embeddings()._forward_hooks))

    names["trainer"].add_callback(Looking())
    names["trainer"].train()
    assert set(hooks) == {1}
    assert len(names["model"].get_input_embeddings()._forward_hooks) == 0


# Files and commands ------------------------------------------------------------------------------------------------


def shell(script, folder, **environment):
    """Runs a script in bash, as the reader's user would in `folder`; nothing is asked of an index."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "HF_"))}
    settled = {**inherited, "PATH": f"{folder}:{BIN}:{os.environ['PATH']}", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env={**settled, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_sample_1_installs_what_is_there(tmp_path):
    assert shell(SAMPLES[0], tmp_path).count("Requirement already satisfied: accelerate") == 2


@pytest.fixture
def my_app(tmp_path):
    """Puts the script of which the guide shows the command line on the path."""
    script = tmp_path / "my_app.py"
    script.write_text(MY_APP.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return tmp_path


@pytest.mark.slow
def test_sample_11_sets_the_level_of_a_script(my_app):
    command = SAMPLES[10].replace("...", "--output_dir out")
    said = shell(command, my_app)
    assert "level 30" in said
    assert "warning of rank 0" in said
    assert "info of rank 0" not in said


@pytest.mark.slow
def test_sample_11_sets_the_level_of_each_of_two_processes(my_app):
    command = SAMPLES[10].replace("...", "--output_dir out").replace("my_app.py", "$PWD/my_app.py")
    said = shell(f"torchrun --standalone --nproc_per_node 2 {command}", my_app, ACCELERATE_USE_CPU="true")
    assert ("level 30" in said, "level 40" in said) == (True, True)
    assert ("warning of rank 0" in said, "warning of rank 1" in said, "error of rank 1" in said) == (True, False, True)


def test_sample_13_is_a_launch_configuration(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "config_file.yaml"
    path.write_text(SAMPLES[12])
    config = load_config_from_file(str(path))
    told = yaml.safe_load(SAMPLES[12])
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 2, "fp16")
    assert {name: getattr(config, name) for name in ("main_process_ip", "main_process_port", "rdzv_backend")} == {
        name: told[name] for name in ("main_process_ip", "main_process_port", "rdzv_backend")
    }


@pytest.fixture
def run_glue(tmp_path):
    """The script that the guide launches, with a pretrained model of the name that it is given."""
    script = tmp_path / "examples/pytorch/text-classification/run_glue.py"
    script.parent.mkdir(parents=True)
    script.write_text(RUN_GLUE.format(tests=str(HERE)))
    make_model().save_pretrained(tmp_path / "bert-base-cased")
    name = f"guide-{uuid.uuid4().hex[:8]}"
    yield tmp_path, name
    shutil.rmtree(Path("/tmp", name), ignore_errors=True)


@pytest.mark.slow
def test_sample_14_trains_under_accelerate_launch(run_glue):
    folder, name = run_glue
    shell(SAMPLES[13], folder, TASK_NAME=name)
    assert json.loads((folder / "told.json").read_text()) == {
        "steps": 12, "world": 1, "bf16": False, "task": name, "length": 128, "has_accuracy": True,
    }  # fmt: skip
    assert Path("/tmp", name, "checkpoint-12").is_dir()


@pytest.mark.slow
def test_sample_15_trains_two_processes_in_the_precision_of_the_launcher(run_glue):
    """The sample lacks a backslash after the script's name; without accelerators the model is replicated."""
    folder, name = run_glue
    command = SAMPLES[14].replace("run_glue.py\n", "run_glue.py \\\n")
    said = shell(command, folder, TASK_NAME=name, ACCELERATE_USE_CPU="true")
    assert json.loads((folder / "told.json").read_text()) == {
        "steps": 6, "world": 2, "bf16": True, "task": name, "length": 128, "has_accuracy": True,
    }  # fmt: skip
    assert "launch: FSDP works on accelerators alone" in said
