"""The random numbers that the user's code draws: what is torch's, Python's and numpy's global state on each rank.

hpctrain itself draws by keys and needs none of it. A checkpoint holds the state of every rank, so that a resumed run
draws what an undisturbed one draws; on another number of ranks there is no such thing, and the states are keyed anew.
"""

import hashlib
import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpctrain.dist.comm import Comm
from hpctrain.errors import CheckpointError


def key(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Set all states by these numbers alone."""
    text = f"hpctrain states {seed} {step} {rank}".encode()
    digest = hashlib.blake2b(text, digest_size=32).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, np.uint32))  # noqa: NPY002 - the global state is what user code draws from
    number = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def key_pass(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Key torch's draws in a pass (dropout) by what it computes, not by who computes it or what came before."""
    text = f"hpctrain draws {seed} {step} {micro_batch}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def capture(device: torch.device) -> dict[str, Tensor]:
    """Return this rank's states: int64 `(N,)` and uint8 `(N,)`.

    Raises:
        CheckpointError: numpy's global generator was replaced by one of another kind.
    """
    _, words, gauss = random.getstate()
    theirs: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    if theirs["bit_generator"] != "MT19937":
        raise CheckpointError(f"numpy's global generator is {theirs['bit_generator']}: not savable")
    numpy_words = [*theirs["state"]["key"].tolist(), theirs["state"]["pos"]]
    states = {
        "python": torch.tensor([*words, *_bits(gauss)]),
        "numpy": torch.tensor([*numpy_words, *_bits(theirs["gauss"] if theirs["has_gauss"] else None)]),
        "torch": torch.default_generator.get_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.default_generators[device.index].get_state()
    return states


def restore(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set this rank's states to what `capture` returned."""
    *words, drawn, bits = states["python"].tolist()
    random.setstate((3, tuple(words), _number(drawn, bits)))
    *key_words, position, drawn, bits = states["numpy"].tolist()
    np.random.set_state({  # noqa: NPY002
        "bit_generator": "MT19937",
        "state": {"key": np.array(key_words, np.uint32), "pos": position},
        "has_gauss": drawn,
        "gauss": _number(drawn, bits) or 0.0,
    })  # fmt: skip
    # copies: torch 2.13 crashes on a state that is a part of a larger tensor
    torch.default_generator.set_state(states["torch"].clone())
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].set_state(states["cuda"].clone())


def gather(comm: Comm, device: torch.device) -> dict[str, Tensor]:
    """Return the states of all ranks, one row `(ranks, N)` for each; every rank must call this.

    Some 15 KiB per rank travel, as a sum in which each rank fills its own row: once per save.
    """
    mine = capture(device)
    sizes = [state.numel() * state.element_size() for state in mine.values()]
    flat = torch.cat([state.view(torch.uint8) for state in mine.values()])
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(torch.int64)  # bytes are not summed by every backend
    rows = torch.zeros(comm.size, len(flat), dtype=torch.int64)
    rows[comm.rank] = flat
    summed = comm.sum(rows).view(torch.uint8)[:, : sum(sizes)]
    parts = torch.split(summed, sizes, dim=1)
    return {name: part.contiguous().view(state.dtype) for (name, state), part in zip(mine.items(), parts, strict=True)}


def _bits(number: float | None) -> tuple[int, int]:
    """Return whether there is a number that a generator has drawn ahead, and its 64 bits."""
    return (0, 0) if number is None else (1, *struct.unpack("<q", struct.pack("<d", number)))


def _number(drawn: int, bits: int) -> float | None:
    found: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return found if drawn else None
