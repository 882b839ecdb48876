"""Models, checkpoints and cards of a run on the Hugging Face Hub."""

from trainer_core_hub_push.plugin import HubPush
from trainer_core_hub_push.settings import HubPushSettings

__all__ = ["HubPush", "HubPushSettings"]
