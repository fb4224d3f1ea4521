"""Hours of devices against sums by hand."""

import pytest

from tasks.last_run import StageRow
from tasks.report.costs import DeviceHours, device_hours


def stage(
    device: str | None, hours: float | None, busy: float | None, *, skipped: int = 0, failed: int = 0
) -> StageRow:
    return StageRow("stage", 1, skipped, failed, 10, 1.0, 10.0, device, 1.0, 1, hours, busy)


def test_hours_add_up_by_kind_of_device() -> None:
    stages = [stage("cpu", 0.5, 0.25), stage("H200", 4.0, 3.0), stage("cpu", 1.5, 0.75), stage(None, None, None)]
    found = device_hours(stages, 1000)
    assert found == [DeviceHours("H200", 4.0, 3.0, 400.0), DeviceHours("cpu", 2.0, 1.0, 200.0)]
    assert [of_kind.busy_share for of_kind in found] == [0.75, 0.5]


@pytest.mark.parametrize("other", [stage("cpu", 1.0, 1.0, skipped=1), stage("cpu", 1.0, 1.0, failed=1)])
def test_a_part_of_the_work_says_nothing_of_the_whole(other: StageRow) -> None:
    (found,) = device_hours([stage("cpu", 1.0, 1.0), other], 1000)
    assert (found.hours, found.per_patches) == (2.0, None)


def test_runs_of_earlier_versions_counted_nothing() -> None:
    assert device_hours([stage(None, None, None)], 1000) == []
