import sys

import pyarrow as pa

from infra.archives.inventory import MAX_NAME, safe_names
from infra.archives.names import is_displayable


def test_names_of_folders_have_the_characters_that_may_be_shown() -> None:
    """Columns are judged in two ways: those of ASCII at once, all others name by name."""
    signs = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]  # UTF-8 has no halves of pairs
    expected = [is_displayable(sign) and sign not in "/\\" for sign in signs]
    assert safe_names(pa.array([f"a{sign}" for sign in signs])).to_pylist() == expected
    assert safe_names(pa.array([f"a{sign}" for sign in signs[:128]])).to_pylist() == expected[:128]


def test_names_of_folders_end_somewhere_and_hide_nothing() -> None:
    names = ["a", None, "", ".", "..", ".a", "a.", "a" * MAX_NAME, "a" * (MAX_NAME + 1)]
    expected = [True, None, False, False, False, False, True, True, False]
    assert MAX_NAME == 255
    assert safe_names(pa.array(names)).to_pylist() == expected
    others = ["\u00e9" * MAX_NAME, "\u00e9" * (MAX_NAME + 1)]
    assert safe_names(pa.array([*names, *others])).to_pylist() == [*expected, True, False]
