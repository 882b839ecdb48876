"""A Hub on the loopback interface, for tests and trials.

    with LoopbackHub(tokens={"hf_mine": "user"}) as hub:
        hub.fault("POST", r"/commit/", 503, retry_after=1)
        args = TrainingArguments("runs/first", push_to_hub=True, hub_token="hf_mine", ...)

It speaks what `huggingface_hub` asks of the true one: repositories with commits, branches and tags, uploads of small
and large files, downloads in full or in part, tokens and private repositories. And it fails when it is told to.
"""

from trainer_core_hub_push.loopback.faults import Fault, Request
from trainer_core_hub_push.loopback.hub import LoopbackHub
from trainer_core_hub_push.loopback.store import Blob, Commit, Repository

__all__ = ["Blob", "Commit", "Fault", "LoopbackHub", "Repository", "Request"]
