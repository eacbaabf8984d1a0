"""Random numbers that belong to a sample: a pure function of (seed, epoch, sample), whoever asks, and in any order.

A counter is hashed: no generator has a state that ranks, workers or a resumed run could disagree on. The hash is the
64-bit finaliser of MurmurHash3 as improved by D. Stafford (variant 13), which SplitMix64 uses on a counter as well
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, epoch: int, samples: npt.ArrayLike, *, count: int, what: str) -> npt.NDArray[np.float64]:
    """Return numbers that are uniform in [0, 1).

    Args:
        seed: of the run.
        epoch: pass over the training set.
        samples: whole numbers of at least 0, `(B,)`; one may stand there more than once.
        count: how many numbers each sample gets.
        what: what they are for; other purposes get other numbers.

    Returns:
        `(B, count)`, with 53 random bits each.
    """
    digest = hashlib.blake2b(f"hpctrain {what} {seed} {epoch}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(digest, "<u8")
    with np.errstate(over="ignore"):
        rows = _mix(np.asarray(samples, np.int64).astype(np.uint64) * _GOLDEN + first)
        values = _mix(rows[:, None] + (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN + second))
    return np.asarray((values >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLY_1
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLY_2
    return values ^ (values >> np.uint64(31))
