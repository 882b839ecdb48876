"""A token is read when it is used, and goes to the Hub and nowhere else."""

import json
import logging
from pathlib import Path

import pytest

from trainer_core import PluginError, SettingsError
from trainer_core.testing import only
from trainer_core.testing.tiny import tiny_trainer
from trainer_core_hub_push.loopback import LoopbackHub

MARKED = ("hf_markedMarkedMarked12", "a-marked-token-of-another-form")


@pytest.fixture(params=MARKED)
def token(request):
    return request.param


@pytest.fixture
def marked_hub(hub, token, monkeypatch):
    """A Hub that knows the marked token, in place of the usual one."""
    with LoopbackHub({token: "user"}) as other:
        monkeypatch.setenv("HF_ENDPOINT", other.endpoint)
        yield other


def trainer_in(folder, **options):
    quick = {"hub_push.backoff_seconds": 0.01, "hub_push.max_backoff_seconds": 0.02, "hub_push.retries": 2}
    usual = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_steps": 8, "logging_steps": 4}
    return tiny_trainer(folder, options={**usual, **quick, **options})


def texts_of(folder):
    return [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]


def failures(folder, hub, token):
    """Runs everything that can fail with the token in hand, and gives the texts of the errors."""
    hub.fault("POST", r"/commit/", 503, times=2)
    trainer = trainer_in(folder, hub_token=token)
    trainer.train()
    told = [repr(trainer.args), json.dumps(trainer.args.to_dict()), json.dumps(trainer.plan().to_dict())]
    del hub.store.accounts[token]
    with pytest.raises(SettingsError) as refused:
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(PluginError) as unknown:
        trainer.push_to_hub()
    hub.stop()
    trainer_in(folder, hub_token=token, num_train_epochs=3).train(resume_from_checkpoint=True)
    with pytest.raises(PluginError) as away:
        trainer.push_to_hub()
    with pytest.raises(SettingsError) as wrong:
        trainer_in(folder, hub_token=token, hub_model_id="a b", hub_push={"token": token, "pussh": True})
    for caught in (refused, unknown, away, wrong):
        told += [str(caught.value), repr(caught.value), *getattr(caught.value, "__notes__", [])]
    return told


def test_a_token_is_in_no_file_no_log_and_no_error(marked_hub, token, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "first"
    with only("hub_push", "checkpointing", "logging", "console"):
        told = failures(folder, marked_hub, token)
    captured = capfd.readouterr()
    told += [captured.out, captured.err, *(record.getMessage() for record in caplog.records)]
    told += [record.exc_text or "" for record in caplog.records]
    written = texts_of(folder)
    assert len(written) > 20
    assert [text for text in told if token in text] == []
    assert [text for text in written if token.encode() in text] == []
    pushed = marked_hub.repo("user/first")
    assert [data for data in pushed.files().values() if token.encode() in data] == []
    assert [commit for commit in pushed.commits() if token in f"{commit.title}{commit.description}"] == []


def test_the_settings_in_a_checkpoint_hold_a_mask(marked_hub, token, tmp_path):
    with only("hub_push", "checkpointing", "logging"):
        trainer_in(tmp_path / "first", hub_token=token).train()
    manifest = json.loads((tmp_path / "first" / "checkpoint-24" / "manifest.json").read_text())
    assert manifest["settings"]["hub_push"]["token"] == "***"


def test_a_token_of_the_environment_is_read_when_a_push_is_made(hub, make, monkeypatch):
    trainer = make(hub_token=None, push_to_hub=False, save_strategy="no")
    with pytest.raises(PluginError, match="hub_token: is needed to push, got None"):
        trainer.push_to_hub()
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert trainer.push_to_hub().repo_url.repo_id == "user/first"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert trainer.push_to_hub().repo_url.repo_id == "other/first"


def test_the_token_of_the_settings_goes_before_that_of_the_environment(hub, make, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    make(hub_strategy="end").train()
    assert hub.repo("user/first").commits()[0].title == "End of training"


MALFORMED = "hf_mar ked\u00e4"
OF_THE_LOGIN = (
    "hub_token: holds characters that no token has, got that of HF_TOKEN or the login. "
    "Copy it again, without blanks, line breaks and letters beyond ASCII."
)


def test_a_malformed_token_of_the_environment_is_told_before_training(hub, make, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", MALFORMED)
    trainer = make(hub_token=None)
    with pytest.raises(SettingsError) as caught:
        trainer.train()
    assert caught.value.problems == [OF_THE_LOGIN]
    with pytest.raises(PluginError) as asked:
        trainer.push_to_hub()
    assert str(asked.value) == OF_THE_LOGIN
    assert hub.requests == []


def test_a_token_that_is_passed_to_a_push_is_cleaned_or_refused(hub, make):
    trainer = make(push_to_hub=False, save_strategy="no")
    assert trainer.push_to_hub(token=" hf_other\n").repo_url.repo_id == "other/first"
    asked = len(hub.requests)
    for token in (MALFORMED, 5, True):
        with pytest.raises(PluginError) as caught:
            trainer.push_to_hub(token=token)
        assert str(caught.value).startswith("push_to_hub.token: ")
        assert str(token) not in str(caught.value)
    assert len(hub.requests) == asked
