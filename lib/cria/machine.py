"""Two settings of the process that make training on a laptop faster. No torch here.

Both are about waiting, not about results: the numbers are the same without them.
"""

import ctypes
import os
import sys


def settle() -> None:
    """Called once, when cria is imported; does nothing where it does not apply."""
    # Torch's threads spin while they wait for each other. Spinning for long is costly
    # when something else wants the core, sleeping at once is costly always
    # (`benchmarks/README.md`). Read when torch is loaded, and inherited by kernels.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Each step frees some megabytes and asks for them again. glibc hands them back to
    # the system in between, which clears every page anew: tell it to keep them.
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
            mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that it takes
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
            mallopt(M_ARENA_MAX, 1)
