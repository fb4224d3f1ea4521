import sys
import unicodedata

import pytest

from infra.archives.names import baseline_of, day_of, is_displayable, product_of, s1_product_of, tile_of

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


def test_what_steers_a_terminal_turns_a_line_or_hides_is_not_shown() -> None:
    """Of all code points: those of letters, marks, numbers, signs and spaces are shown, and the two joiners."""
    shown = {chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] in "LMNPS"}
    spaces = set(" \u00a0\u1680\u202f\u205f\u3000") | {chr(i) for i in range(0x2000, 0x200B)}
    expected = shown | spaces | {"\u200c", "\u200d"}
    assert {chr(i) for i in range(sys.maxunicode + 1) if is_displayable(chr(i))} == expected
    steering = "\x1b\n\x9b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2028\u2029\u2066\u2067\u2068\u2069"
    assert not expected.intersection(steering + "\u200b\ufeff\U000e0001\U000e0041")


def test_one_character_is_enough() -> None:
    assert is_displayable("a\u202fb")
    assert is_displayable("")
    assert not is_displayable("a\u202fb\u202e")
