"""The season of an acquisition, by the meteorological calendar of the northern hemisphere, where the archive lies."""

from datetime import date
from typing import Literal

Season = Literal["winter", "spring", "summer", "autumn"]

_BY_MONTH: tuple[Season, ...] = (
    *("winter", "winter", "spring", "spring", "spring", "summer"),
    *("summer", "summer", "autumn", "autumn", "autumn", "winter"),
)


def season(day: date | str) -> Season:
    """Return the season of a day: winter is December to February, spring begins in March, and so on.

    Args:
        day: A date, or YYYY-MM-DD.

    Raises:
        ValueError: The text is not a date.
    """
    day = date.fromisoformat(day) if isinstance(day, str) else day
    return _BY_MONTH[day.month - 1]
