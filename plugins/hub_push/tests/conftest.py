"""What the tests of this plugin share: a Hub on the loopback interface."""

from time import monotonic, sleep

import pytest
import torch

from trainer_core_hub_push.client import hub_api
from trainer_core_hub_push.loopback import LoopbackHub
from trainer_core_hub_push.uploading import Uploader

TOKENS = {"hf_writer": "user", "hf_reader": ("user", "read"), "hf_other": "other"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def wait_until():
    """Waits until something is so."""

    def wait(is_so, seconds=120):
        deadline = monotonic() + seconds
        while not is_so():
            assert monotonic() < deadline
            sleep(0.02)

    return wait


@pytest.fixture
def begun(monkeypatch):
    """The uploaders that a test began."""
    found, begin = set(), Uploader.begin

    def note(self):
        found.add(self)
        begin(self)

    monkeypatch.setattr(Uploader, "begin", note)
    return found


def end(uploaders, hub):
    """Ends what a test left to be pushed, with the Hub there: the client tries for 23 s to reach one that is not."""
    for one in uploaders:
        one.stop()
    if any(one.is_active for one in uploaders):
        hub.clear_faults()
        hub.delay = 0.0
        hub.stop()  # its late answers are waited for no longer
        hub.start()
    assert all(one.wait(60) for one in uploaders)


@pytest.fixture
def hub(monkeypatch, tmp_path, begun):
    """A Hub that the environment points to; nobody is logged in, and what is cached lies in tmp_path."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hf" / name))
    with LoopbackHub(TOKENS, orgs={"user": ["team"]}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
        end(begun, hub)


@pytest.fixture
def api(hub):
    """A client of that Hub with the token of `user`."""
    return hub_api("hf_writer")


@pytest.fixture
def make(hub, tmp_path):
    """Makes a trainer that pushes to the Hub, with short waits; `train` of it writes into tmp_path / "first"."""
    from trainer_core.testing import only
    from trainer_core.testing.tiny import tiny_trainer

    def trainer(*plugins, model=None, **options):
        usual = {"push_to_hub": True, "hub_token": "hf_writer", **options}
        if not options.keys() & {"save_strategy", "checkpointing"}:
            usual.setdefault("save_steps", 8)
        push = {"backoff_seconds": 0.01, "max_backoff_seconds": 0.05, **usual.pop("hub_push", {})}
        usual |= {f"hub_push.{name}": value for name, value in push.items()}
        return tiny_trainer(tmp_path / "first", plugins, model, options=usual)

    with only("hub_push", "checkpointing"):
        yield trainer
