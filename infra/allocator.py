"""What becomes of memory that is freed.

A network on the CPU asks for hundreds of megabytes for each layer's result, and frees them soon after. glibc hands such
pieces back to the system at once, and the system clears every page before it hands it out again: a fifth of the
processor time of super-resolution, and a quarter of its time by the clock (benchmarks/overhead.py).

Source: glibc manual, "Malloc Tunable Parameters".
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Let this process use again what it has freed, instead of handing it back.

    It keeps, until it ends or `hand_back` is called, as much as it ever held at once, and somewhat more: the pieces do
    not fit into each other's places exactly. Threads that asked for memory before may go on handing back large pieces;
    the main thread does not. Without glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # pieces of the system's own are what is handed back
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_ARENA_MAX, 1)  # no piece of 64 MB fits into the others, which threads have


def hand_back() -> None:
    """Hand back to the system what is free now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
