"""Time and memory of the order of samples: a batch of 1024 out of 10^9, at places all over the epoch.

    python tests/bench/order.py [--rounds 500]

Memory is the peak of what numpy allocates during a call, and the growth of the process over all calls.
"""

import argparse
import resource
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hpctrain.data.order import block_order, order

N, BATCH = 10**9, 1024
Call = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def measure(name: str, call: Call, n: int, rounds: int) -> None:
    """Print median and quartiles of the time, and the memory."""
    starts = np.random.default_rng(0).integers(0, n - BATCH, rounds)
    call(np.arange(BATCH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for start in starts.tolist():
        positions = np.arange(start, start + BATCH)
        began = time.perf_counter()
        call(positions)
        times.append((time.perf_counter() - began) * 1e3)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tracemalloc.start()
    call(np.arange(BATCH))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    low, middle, high = statistics.quantiles(times, n=4)
    print(f"{name:34} {middle:.3f} ms ({low:.3f} - {high:.3f}), peak {peak:.2f} MiB, process grew by {grown:.1f} MiB")


def main() -> None:
    """Run all orders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    worst = 2**30 + 1  # just above a power of two: half of all values walk
    measure("full, 10^9", lambda positions: order(N, 0, 1, positions), N, rounds)
    measure("blocks of 256, 10^9", lambda positions: block_order(N, 0, 1, positions, 256), N, rounds)
    measure("blocks of 1000, 10^9", lambda positions: block_order(N, 0, 1, positions, 1000), N, rounds)
    measure("full, 2^30 + 1", lambda positions: order(worst, 0, 1, positions), worst, rounds)
    measure("blocks of 256, 2^30 + 1", lambda positions: block_order(worst, 0, 1, positions, 256), worst, rounds)


if __name__ == "__main__":
    main()
