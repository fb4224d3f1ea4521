import ctypes

import pytest

from tests.fuzz.memory import filled


@pytest.mark.parametrize("value", [0x01, 0x5A, 0xFE])
def test_malloc_hands_out_what_it_is_told_to(value: int) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with filled(value):
        place = libc.malloc(5000)
    try:
        assert ctypes.string_at(place, 5000) == bytes([value]) * 5000
    finally:
        libc.free(ctypes.c_void_p(place))
