import pytest

from infra.archives.names import baseline_of, day_of, product_of, s1_product_of, tile_of

V2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"


def test_the_parts_of_a_v2_name() -> None:
    assert product_of(V2) == "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    assert s1_product_of("S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57") == "S1B_IW_GRDH_1SDV_20170612T165809"
    assert (day_of(V2), tile_of(V2), baseline_of(V2)) == ("2017-06-13", "33UUP", 9999)


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("S2B_MSIL2A_20180204T94161_57_38", "2018-02-04"),
        ("S2B_MSIL2A_20180231T094161_57_38", None),
        ("scene", None),
        ("x20180204T094161", None),
    ],
)
def test_days(name: str, day: str | None) -> None:
    assert day_of(name) == day


def test_names_without_tile_or_baseline() -> None:
    assert (tile_of("S2A_MSIL2A_20170613T101031_87_48"), baseline_of("N123_x")) == (None, None)
