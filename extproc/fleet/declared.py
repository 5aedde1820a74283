"""The output limits that simulated clients declare, since traces do not record them."""

from enum import StrEnum


class Declared(StrEnum):
    """A rule for the limit that clients declare."""

    EXACT = "exact"
    """The limit equals the output's length, as the papers assume."""
    ABSENT = "absent"
    """No limit."""

    def limit(self, output_tokens: int) -> int | None:
        """Return the limit that a client declares for an output of this length."""
        return output_tokens if self is Declared.EXACT else None
