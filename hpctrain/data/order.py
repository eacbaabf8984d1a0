"""Which sample stands where: a keyed permutation of each epoch, and how a global batch is shared out.

`order` is a pure function of (n, seed, epoch, position). Nothing is stored, shuffled or handed on, so that any rank
can ask for any position, and a resumed run needs the step alone.

The permutation is a Feistel network on the smallest power of two that holds n (M. Luby and C. Rackoff, "How to
construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 1988), narrowed to n by walking along
its cycles until the value is below n (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
It has ten rounds, as FF1 has (NIST SP 800-38G), and more where halves are so narrow that ten keys leave a bias that
can be measured. The round function is the 32-bit finaliser of MurmurHash3 (A. Appleby, public domain), and the round
keys come from SHAKE-128 of (seed, epoch).
"""

import hashlib

import numpy as np
import numpy.typing as npt

_ROUNDS = 10
_ROUNDS_NARROW = 32
_NARROW_BITS = 10
_MULTIPLY_1 = np.uint32(0x85EBCA6B)
_MULTIPLY_2 = np.uint32(0xC2B2AE35)
_CHUNK = 16384  # values that stay in the second-level cache through all rounds


def order(n: int, seed: int, epoch: int, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the samples that stand at the given positions of an epoch.

    Over all positions 0 to n - 1 this is a permutation of 0 to n - 1. Memory is O(positions), whatever n is; a walk
    takes 1 to 2 turns per position on average.

    Args:
        n: samples of the training set, 1 to 2^62.
        seed: any whole number; the same for the whole run.
        epoch: which pass over the samples, from 0.
        positions: whole numbers below n, in any order and shape (...).

    Returns:
        Indices of samples, int64, of the shape of `positions`.

    Raises:
        IndexError: a position is negative or not below n.
    """
    asked = np.asarray(positions, dtype=np.int64)
    if asked.size and (int(asked.min()) < 0 or int(asked.max()) >= n):
        raise IndexError(f"positions run from {asked.min()} to {asked.max()}, of {n} samples")
    bits = max((n - 1).bit_length(), 2)
    rounds = _ROUNDS if bits > _NARROW_BITS else _ROUNDS_NARROW
    digest = hashlib.shake_128(f"hpctrain order {seed} {epoch}".encode()).digest(4 * rounds)
    keys = np.frombuffer(digest, "<u4").astype(np.uint32)
    flat = asked.reshape(-1).astype(np.uint64)  # a copy: the network works in place
    limit = np.uint64(n)
    for begin in range(0, flat.size, _CHUNK):
        chunk = flat[begin : begin + _CHUNK]
        _permute(chunk, bits, keys)
        beyond = np.flatnonzero(chunk >= limit)
        while beyond.size:
            walking = chunk[beyond]
            _permute(walking, bits, keys)
            chunk[beyond] = walking
            beyond = beyond[walking >= limit]
    return flat.astype(np.int64).reshape(asked.shape)


def micro_batch(samples: int, parts: int, part: int) -> tuple[int, int]:
    """Return begin and end, within a global batch, of one of its contiguous micro-batches.

    The global batch is one contiguous slice of the order. It is cut into accumulate x ranks micro-batches that differ
    by at most one sample, and pass `a` of rank `r` takes micro-batch `a * ranks + r`. Where a last, smaller batch has
    fewer samples than there are micro-batches, some are empty.
    """
    return part * samples // parts, (part + 1) * samples // parts


def _permute(values: npt.NDArray[np.uint64], bits: int, keys: npt.NDArray[np.uint32]) -> None:
    """Replace values below 2^bits by their images under the Feistel network, in place."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    # Halves of up to 31 bits: 32-bit arithmetic is several times faster than 64-bit multiplication on vectors.
    high = (values >> np.uint64(low_bits)).astype(np.uint32)
    low = (values & np.uint64((1 << low_bits) - 1)).astype(np.uint32)
    mixed, scratch = np.empty_like(high), np.empty_like(high)
    for number, key in enumerate(keys):
        # Halves of different widths take turns, which needs no equal halves and so no larger domain.
        source, target, width = (low, high, high_bits) if number % 2 == 0 else (high, low, low_bits)
        np.add(source, key, out=mixed)
        _mix(mixed, scratch)
        np.right_shift(mixed, np.uint32(32 - width), out=mixed)
        np.bitwise_xor(target, mixed, out=target)
    np.left_shift(high, np.uint64(low_bits), out=values, dtype=np.uint64)
    np.bitwise_or(values, low, out=values)


def _mix(values: npt.NDArray[np.uint32], scratch: npt.NDArray[np.uint32]) -> None:
    """Apply MurmurHash3's finaliser in place."""
    for shift, factor in ((16, _MULTIPLY_1), (13, _MULTIPLY_2), (16, None)):
        np.right_shift(values, np.uint32(shift), out=scratch)
        np.bitwise_xor(values, scratch, out=values)
        if factor is not None:
            np.multiply(values, factor, out=values)
