"""The oracle is the system's own count of the pages that it had to find."""

import subprocess
import sys

import pytest

_PIECES = """
import ctypes, resource, sys, threading
from infra.allocator import hand_back, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        piece = libc.malloc(100 << 20)
        ctypes.memset(piece, 1, 100 << 20)
        libc.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def told():
    print(pages(), pages())
    hand_back()
    print(pages(), pages())

if "keep" in sys.argv:
    keep_freed_memory()
if "thread" in sys.argv:
    thread = threading.Thread(target=told)
    thread.start()
    thread.join()
else:
    told()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_is_kept_is_not_asked_for_again_until_it_is_handed_back(where: str) -> None:
    """Five pieces of 100 MiB have 25,600 pages each, of 4 KiB, or fewer larger ones."""

    def pages(*arguments: str) -> list[int]:
        command = [sys.executable, "-c", _PIECES, where, *arguments]
        return [int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

    piece = min(pages()) / 5  # without, each is asked for every time
    assert piece > 40
    first, again, anew, last = pages("keep")
    assert first == pytest.approx(piece, rel=0.1)
    assert anew == pytest.approx(piece, rel=0.1)
    assert again < piece / 20
    assert last < piece / 20
