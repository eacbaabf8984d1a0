"""Which sample stands where: a keyed permutation of each epoch, and how a global batch is shared out.

`order` and `block_order` are pure functions of (n, seed, epoch, position). Nothing is stored, shuffled or handed on, so
that any rank can ask for any position, and a resumed run needs the step alone.

The permutation is a Feistel network on the smallest power of two that holds n (M. Luby and C. Rackoff, "How to
construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 1988), narrowed to n by walking along
its cycles until the value is below n (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
It has ten rounds, as FF1 has (NIST SP 800-38G), and more where halves are so narrow that ten keys leave a bias that
can be measured (tests/bench/order_quality.py). The round function is the 32-bit finaliser of MurmurHash3 (A. Appleby,
public domain), and the round keys come from SHAKE-128 of (seed, epoch).
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
_GOLDEN = np.uint32(0x9E3779B9)

_AMONG = 16  # runs of neighbours that are shuffled together, at least

Integers = npt.NDArray[np.int64]


def order(n: int, seed: int, epoch: int, positions: npt.ArrayLike) -> Integers:
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
    asked = _checked(n, positions)
    return _shuffled(asked.reshape(-1), n, f"{seed} {epoch}").reshape(asked.shape)


def block_order(n: int, seed: int, epoch: int, positions: npt.ArrayLike, block: int) -> Integers:
    """Return the samples of positions in an order that reads neighbours: for disks and network file systems.

    The samples are cut into runs of `block` neighbours, the last of which may be shorter. Runs stand in random order,
    the short one at any place; samples are shuffled among 16 to 32 runs that follow each other, at the end of the epoch
    among up to twice as many. So whoever reads ahead meets a part of the files at a time, and each sample once.

    Args:
        n: samples of the training set, 1 to 2^62.
        seed: any whole number; the same for the whole run.
        epoch: which pass over the samples, from 0.
        positions: whole numbers below n, in any order and shape (...).
        block: samples of a run.

    Returns:
        Indices of samples, int64, of the shape of `positions`.

    Raises:
        IndexError: a position is negative or not below n.
    """
    asked = _checked(n, positions)
    flat = asked.reshape(-1)
    full, rest = divmod(n, block)
    missing = block - rest if rest else 0
    places = full + (rest > 0)
    text = f"{seed} {epoch}"
    # With no short run its place is behind all others.
    short = int.from_bytes(_digest(f"short run {text}", 8), "little") % places if rest else places
    window = (1 << (_AMONG * block - 1).bit_length()) // block  # close to a power of two: few walks
    last = max(places // window - 1, 0)  # the last window takes what remains

    def with_gap(position: Integers) -> Integers:
        """As if the short run were as long as the others."""
        return position + missing * (position >= short * block + rest) if rest else position

    def begin(window_number: Integers) -> Integers:
        return window_number * (window * block) - missing * (window_number * window > short)

    number = np.minimum(with_gap(flat) // (window * block), last)
    first = begin(number)
    inside = (flat - first).astype(np.uint64)
    room = (np.where(number == last, n, begin(number + 1)) - first).astype(np.uint64)
    for chosen in (np.flatnonzero(number < last), np.flatnonzero(number == last)):
        if chosen.size:
            values, limits = inside[chosen], room[chosen]
            _permute_below(limits, values, int(limits.max()), f"among runs {text}", number[chosen].astype(np.uint32))
            inside[chosen] = values
    place, offset = np.divmod(with_gap(first + inside.astype(np.int64)), block)
    met, which = np.unique(place, return_inverse=True)
    run = np.full_like(met, full)
    others = met != short
    run[others] = _shuffled(met[others] - (met[others] > short), full, f"runs {text}")
    run = run[which]
    return (run * block + offset).reshape(asked.shape)


def micro_batch(samples: int, parts: int, part: int) -> tuple[int, int]:
    """Return begin and end, within a global batch, of one of its contiguous micro-batches.

    The global batch is one contiguous slice of the order. It is cut into accumulate x ranks micro-batches that differ
    by at most one sample, and pass `a` of rank `r` takes micro-batch `a * ranks + r`. Where a last, smaller batch has
    fewer samples than there are micro-batches, some are empty.
    """
    return part * samples // parts, (part + 1) * samples // parts


def _checked(n: int, positions: npt.ArrayLike) -> Integers:
    asked = np.asarray(positions, dtype=np.int64)
    if asked.size and (int(asked.min()) < 0 or int(asked.max()) >= n):
        raise IndexError(f"positions run from {asked.min()} to {asked.max()}, of {n} samples")
    return asked


def _digest(text: str, length: int) -> bytes:
    return hashlib.shake_128(f"hpctrain order {text}".encode()).digest(length)


def _shuffled(positions: Integers, n: int, text: str) -> Integers:
    values = positions.astype(np.uint64)  # a copy: the network works in place
    _permute_below(np.broadcast_to(np.uint64(n), values.shape), values, n, text)
    return values.astype(np.int64)


def _permute_below(
    limits: npt.NDArray[np.uint64],
    values: npt.NDArray[np.uint64],
    most: int,
    text: str,
    tweaks: npt.NDArray[np.uint32] | None = None,
) -> None:
    """Permute values in place, each below its limit.

    Args:
        limits: `(P,)`; the same for all values of one tweak.
        values: `(P,)`.
        most: the largest limit; a limit far below it costs many turns.
        text: the keys follow from it.
        tweaks: values of another tweak see another permutation, `(P,)`.
    """
    bits = max((most - 1).bit_length(), 2)
    rounds = _ROUNDS if bits > _NARROW_BITS else _ROUNDS_NARROW
    keys = np.frombuffer(_digest(text, 4 * rounds), "<u4").astype(np.uint32)
    for begin in range(0, values.size, _CHUNK):
        window = slice(begin, begin + _CHUNK)
        chunk, limit = values[window], limits[window]
        tweak = None if tweaks is None else tweaks[window]
        _permute(chunk, bits, keys, tweak)
        beyond = np.flatnonzero(chunk >= limit)
        while beyond.size:
            walking = chunk[beyond]
            _permute(walking, bits, keys, None if tweak is None else tweak[beyond])
            chunk[beyond] = walking
            beyond = beyond[walking >= limit[beyond]]


def _permute(
    values: npt.NDArray[np.uint64],
    bits: int,
    keys: npt.NDArray[np.uint32],
    tweaks: npt.NDArray[np.uint32] | None,
) -> None:
    """Replace values below 2^bits by their images under the Feistel network, in place."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    # Halves of up to 31 bits: 32-bit arithmetic is several times faster than 64-bit multiplication on vectors.
    high = (values >> np.uint64(low_bits)).astype(np.uint32)
    low = (values & np.uint64((1 << low_bits) - 1)).astype(np.uint32)
    mixed, scratch = np.empty_like(high), np.empty_like(high)
    for number, key in enumerate(keys):
        # Halves of different widths take turns, which needs no equal halves and so no larger domain.
        source, target, width = (low, high, high_bits) if number % 2 == 0 else (high, low, low_bits)
        if tweaks is None:
            np.add(source, key, out=mixed)
        else:
            np.multiply(tweaks, _GOLDEN, out=mixed)
            np.add(mixed, key, out=mixed)
            _mix(mixed, scratch)
            np.add(mixed, source, out=mixed)
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
