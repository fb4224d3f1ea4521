"""What a run cost in hours of its devices: the page multiplies by a price that its reader types."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.last_run import StageRow

PER_PATCHES = 100_000
"""Patches that hours are also given for."""


@dataclass(frozen=True, slots=True)
class DeviceHours:
    """Hours of one kind of device over all stages."""

    device: str
    """cpu, whose hours are of cores, or a kind of GPU."""
    hours: float
    """Held, from each stage's start to its end."""
    busy: float
    """Those that went into shards that were done."""
    per_patches: float | None
    """Hours for PER_PATCHES patches; None where work was done by an earlier run, or some shards failed."""

    @property
    def busy_share(self) -> float:
        """Share of the hours held that went into shards."""
        return self.busy / self.hours if self.hours else 0.0


def device_hours(stages: Sequence[StageRow], patches: int) -> list[DeviceHours]:
    """Return the hours of every kind of device that a run held, the most first; none of runs that did not count them.

    Args:
        stages: The run's.
        patches: Patches of the archive.
    """
    known = [stage for stage in stages if stage.device is not None and stage.device_hours is not None]
    whole = bool(patches) and not any(stage.skipped or stage.failed for stage in stages)
    found = []
    for device in dict.fromkeys(stage.device for stage in known if stage.device is not None):
        of_device = [stage for stage in known if stage.device == device]
        hours = sum(stage.device_hours or 0.0 for stage in of_device)
        busy = sum(stage.busy_device_hours or 0.0 for stage in of_device)
        found.append(DeviceHours(device, hours, busy, hours * PER_PATCHES / patches if whole else None))
    return sorted(found, key=lambda of_kind: -of_kind.hours)
