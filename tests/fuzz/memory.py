"""Memory that is filled as it is handed out: what is read and was never written differs from one fill to another."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Environment of a process whose small pieces of memory are to be filled too."""

_LIBC = ctypes.CDLL(None)
_M_PERTURB = -6  # glibc's malloc.h


@contextmanager
def filled(value: int) -> Iterator[None]:
    """Have `malloc` fill what it hands out, in all threads, while the block runs.

    Args:
        value: Of each byte, 1 to 254.
    """
    if not _LIBC.mallopt(_M_PERTURB, value ^ 0xFF):  # it fills with the complement
        raise OSError("this C library cannot fill memory")
    try:
        yield
    finally:
        _LIBC.mallopt(_M_PERTURB, 0)
