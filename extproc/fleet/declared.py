"""What clients say of the output they want; traces do not say."""

from enum import StrEnum


class Declared(StrEnum):
    """The limit that a client declares."""

    EXACT = "exact"
    """The limit is the output's length: what the papers assume."""
    ABSENT = "absent"
    """No limit."""

    def limit(self, output_tokens: int) -> int | None:
        """The limit that a client sets whose output will be so long."""
        return output_tokens if self is Declared.EXACT else None
