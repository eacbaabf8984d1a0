"""The samples of a tar shard in WebDataset's naming: members KEY.jpg and KEY.cls that stand together are one sample.

As WebDataset has it, the key is the path up to the first dot of the file's name, and the rest is what the member is.
"""

import hashlib
import itertools
import re
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hpctrain.data.sizes import LARGEST
from hpctrain.data.tar import Archive, Member, shown

_PICTURE = re.compile(r"(.*\.)?(jpe?g|png)", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"(.*\.)?cls", re.IGNORECASE | re.DOTALL)
_MOST_SAMPLES = 2**24  # of one shard: 256 MiB of rows
_LARGEST_LABEL = 10**6


class Rows(NamedTuple):
    """The samples of one shard."""

    size: int
    """Of the shard, in bytes."""
    modified_ns: int
    samples: int
    classes: int
    """The largest label + 1."""
    offsets: bytes
    """Of the pictures, 64 bits each, little-endian like the rest."""
    sizes: bytes
    """Of the pictures, 32 bits each."""
    labels: bytes
    """32 bits each."""


def rows(path: Path) -> Rows:
    """Read where the samples of a shard lie, and their labels.

    Raises:
        DataError: it is no tar file, is damaged, or holds what is no sample.
    """
    offsets, sizes, labels, keys = array("Q"), array("I"), array("i"), array("Q")
    with Archive(path) as archive:
        for key, picture, label in _samples(archive):
            if len(offsets) == _MOST_SAMPLES:
                archive.fail(picture.header, f"more than {_MOST_SAMPLES} samples in one shard", "make more shards")
            offsets.append(picture.data)
            sizes.append(picture.size)
            labels.append(label)
            keys.append(_hash(key))
        if not offsets:
            archive.fail(0, "holds no samples", "samples are members such as 000001.jpg and 000001.cls")
        _refuse_duplicates(archive, keys)
        return Rows(
            archive.size,
            archive.modified_ns,
            len(offsets),
            max(labels) + 1,
            *(_little(column) for column in (offsets, sizes, labels)),
        )


def _samples(archive: Archive) -> Iterator[tuple[str, Member, int]]:
    """Yield key, picture and label of each group of members."""
    key, picture, label = "", None, None
    last: Member | None = None
    for member in archive.members():
        found, extension = split_key(member.name)
        if last is not None and found != key:
            yield key, *_whole(archive, key, last, picture, label)
            picture = label = None
        key, last = found, member
        if _PICTURE.fullmatch(extension):
            if picture is not None:
                archive.fail(member.header, "is the second picture of its sample", name=member.name)
            if not 0 < member.size <= LARGEST:
                what = f"has {member.size} bytes; a picture has 1 to {LARGEST}"
                archive.fail(member.header, what, name=member.name)
            picture = member
        elif _LABEL.fullmatch(extension):
            if label is not None:
                archive.fail(member.header, "is the second label of its sample", name=member.name)
            label = _label(archive, member)
    if last is not None:
        yield key, *_whole(archive, key, last, picture, label)


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample and what it is, such as `jpg`."""
    directory, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{directory}{slash}{stem}", extension


def _whole(archive: Archive, key: str, last: Member, picture: Member | None, label: int | None) -> tuple[Member, int]:
    if picture is None:
        what = "the sample has no picture: no .jpg, .jpeg or .png"
        archive.fail(last.header, what, "samples are members such as 000001.jpg and 000001.cls", name=key)
    if label is None:
        what = "the sample has no label: no .cls with a whole number"
        archive.fail(last.header, what, "unpack it into class directories, and type hpctrain pack SRC OUT", name=key)
    return picture, label


def _label(archive: Archive, member: Member) -> int:
    text = archive.content(member.data, member.size).strip() if member.size <= 32 else b""
    if not text.isdigit() or int(text) > _LARGEST_LABEL:
        what = f"holds no label: a whole number of at most {_LARGEST_LABEL} is expected"
        archive.fail(member.header, what, name=member.name)
    return int(text)


def _hash(key: str) -> int:
    # 8 bytes for each key, where the keys themselves would take ten times as much
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _refuse_duplicates(archive: Archive, keys: "array[int]") -> None:
    ordered = sorted(keys)
    twice = next((one for one, other in itertools.pairwise(ordered) if one == other), None)
    if twice is None:
        return
    met = False
    for key, picture, _ in _samples(archive):
        if _hash(key) == twice:
            if met:
                archive.fail(
                    picture.header,
                    f"the key {shown(key)} stands here again, apart from the sample that has it already",
                    "the members of a sample stand together, and no two samples have the same key",
                    name=picture.name,
                )
            met = True


def _little(column: "array[int]") -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()
