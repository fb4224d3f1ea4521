from datetime import date

import pytest

from infra.bigearthnet.seasons import season


def test_every_month_has_its_season() -> None:
    by_month = [season(date(2018, month, 1)) for month in range(1, 13)]
    assert by_month[:2] + by_month[11:] == ["winter"] * 3
    assert by_month[2:5] == ["spring"] * 3
    assert by_month[5:8] == ["summer"] * 3
    assert by_month[8:11] == ["autumn"] * 3


def test_text_is_a_day() -> None:
    assert season("2017-06-13") == "summer"
    with pytest.raises(ValueError, match="summer"):
        season("summer")
