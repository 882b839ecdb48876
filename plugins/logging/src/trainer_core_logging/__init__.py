"""Logged rows of a run: when there is one, where it is written, and how loud our own loggers are."""

from trainer_core_logging.plugin import Logging
from trainer_core_logging.settings import LoggingSettings

__all__ = ["Logging", "LoggingSettings"]
