"""How long to wait before another try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainer_core_hub_push.settings import HubPushSettings

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
