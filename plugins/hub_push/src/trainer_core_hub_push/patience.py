"""How long to wait before another try."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer_core_hub_push.settings import HubPushSettings

LONGEST_WAIT_SECONDS: Final = 900.0
"""That the Hub may ask for; a run or a command that is asked for more ends or goes on without it."""
_DAYS_FROM_HOURS: Final = 48
_LEAST_SHARE: Final = 0.5
"""Of the time to wait; the rest is drawn, so that many runs do not come back at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How failures are waited out; see the settings of the same names."""

    retries: int
    backoff_seconds: float
    max_backoff_seconds: float

    @classmethod
    def of(cls, settings: HubPushSettings) -> Patience:
        """Gives what the settings say."""
        return cls(settings.retries, settings.backoff_seconds, settings.max_backoff_seconds)

    def seconds(self, failures: int, share: float, asked: float | None) -> float:
        """Gives the seconds to wait after so many failures in a row.

        Args:
            failures: 1 or more.
            share: drawn, from 0 to 1.
            asked: what the Hub asks for.
        """
        longest = min(self.max_backoff_seconds, self.backoff_seconds * 2.0 ** min(failures - 1, 32))
        return max(longest * (_LEAST_SHARE + (1 - _LEAST_SHARE) * share), asked or 0.0)


def too_long(asked: float | None) -> str:
    """Says that the seconds which the Hub asks for are not waited; empty where they are."""
    if asked is None or asked <= LONGEST_WAIT_SECONDS:
        return ""
    longest = duration(LONGEST_WAIT_SECONDS)
    return f"the Hub asks to wait {duration(asked)}, longer than the {longest} that are waited at most"


def duration(seconds: float) -> str:
    """Gives a time in units that a reader counts in, from a minute on rounded up."""
    if seconds < 59.5:  # from there on it is rounded to 60
        return f"{seconds:.3g} s"
    if seconds > _DAYS_FROM_HOURS * 3600:
        return f"{seconds / 86_400:,.1f} days"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return " ".join(text for number, text in ((hours, f"{hours} h"), (minutes, f"{minutes} min")) if number)
