"""Find a dataset and count its samples before the job is queued; no torch, no numpy.

Only headers, sizes, and what is in a cache are read, so this takes a few file-system calls. What would take longer is
left to `hpctrain.data.count`.
"""

import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpctrain.config.datasets import CifarArgs, Data, FolderArgs, PointsArgs, ShardsArgs, TableArgs
from hpctrain.config.schema import arguments
from hpctrain.data.sizes import more, sizes
from hpctrain.errors import UsageError
from hpctrain.plan import Samples

if TYPE_CHECKING:
    from hpctrain.data import index, listing

MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of the two splits, by the names under which MNIST is published."""

DIGITS = Path(__file__).with_name("digits")
"""The dataset that comes along; its README names the source."""
DIGITS_TRAIN = 1500
DIGITS_TEST = 297

SYNTHETIC_TRAIN = 10_000
"""Training samples of `dataset: synthetic` unless `data.samples` says otherwise; a fifth as many are for testing."""

_MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MAGIC = bytes([0, 0, 0x08])  # two zero bytes and the code of uint8; the number of dimensions follows


class Found(NamedTuple):
    """A dataset as its files have it."""

    train: int | None
    """Samples of the training set, of which some may be set apart; None: unknown until counted."""
    test: int | None
    """Samples of its own test set; None: it has none."""
    path: Path | None = None
    digest: str | None = None
    """Of what was counted, where the ranks shall find the same."""


def locate(data: Data, env: Mapping[str, str] = os.environ) -> Samples:
    """Count the samples of a dataset and find its directory (absolute; None for datasets without files).

    Raises:
        UsageError: a file is missing, truncated, or not what its name says; or `data.samples` asks for too many.
    """
    return samples_of(data, _find(data, env))


def samples_of(data: Data, found: Found) -> Samples:
    """Say which of the samples that were found are for what.

    Raises:
        UsageError: none are left for a purpose, or `data.samples` asks for too many.
    """
    path = None if found.path is None else str(found.path)
    if found.train is None:
        return Samples(path=path)
    split = sizes(found.train, data.split)
    if data.samples is not None and data.samples > split.train:
        raise UsageError(
            f"data.samples: {data.samples} are asked for, {data.dataset} has {split.train} training samples",
            f"use data.samples={split.train} or less, or leave it out",
        )
    test = split.test if data.split.test else found.test
    parts = {"training": split.train, "test": test}
    if data.split.validation or data.split.fold is not None:
        parts["validation"] = split.validation
    for name, count in parts.items():
        if not count:
            raise UsageError(
                f"{data.dataset} has no {name} samples: {found.train} are split into {split.train} for training, "
                f"{split.validation} for validation and {split.test} for testing",
                more(name, found.train, data.split),
            )
    return Samples(
        train=data.samples or split.train,
        validation=split.validation,
        test=test,
        path=path,
        digest=found.digest,
    )


def _find(data: Data, env: Mapping[str, str]) -> Found:
    if data.dataset == "synthetic":
        train = data.samples or SYNTHETIC_TRAIN
        return Found(train, max(train // 5, 1))
    if data.dataset in {"digits", "points"}:
        return _comes_along(data)
    if ":" in data.dataset:  # it must be called, which is for the child that counts
        return Found(None, None)
    if data.dataset in {"folder", "shards"}:
        return _kept(data)
    if data.dataset == "table":
        from hpctrain.data import columns  # only a table pays for it

        path = _absolute(data.path or "")
        return Found(columns.count(path, arguments(TableArgs, data.args)), None, path)
    return _whole_files(data, _directory(data, env))


def _comes_along(data: Data) -> Found:
    if data.dataset == "digits":
        return Found(DIGITS_TRAIN, DIGITS_TEST)
    points: PointsArgs = arguments(PointsArgs, data.args)
    return Found(points.count, points.test_count)


def _whole_files(data: Data, directory: Path) -> Found:
    """Count CIFAR by the sizes of its files, and IDX files by their headers."""
    if data.dataset in {"cifar10", "cifar100"}:
        from hpctrain.data import cifar_files  # only CIFAR pays for it

        args: CifarArgs = arguments(CifarArgs, data.args)
        counts = cifar_files.count(directory, data.dataset, args.only)
        return Found(counts["train"], counts["test"], directory)
    shapes = {split: _paired(directory, *stems) for split, stems in MNIST.items()}
    if shapes["train"][1:] != shapes["test"][1:]:
        pixels = [" x ".join(map(str, shape[1:])) for shape in shapes.values()]
        raise UsageError(
            f"{directory}: the training images have {pixels[0]} pixels, the test images {pixels[1]}",
            "they do not belong together: download both again",
        )
    return Found(shapes["train"][0], shapes["test"][0], directory)


def _kept(data: Data) -> Found:
    """Look for a listing or an index that is there already."""
    if data.dataset == "folder":
        from hpctrain.data import listing

        return folder_found(data, listing.known)
    from hpctrain.data import index

    return shards_found(data, index.known)


def folder_found(data: Data, summary: "Callable[[Path], listing.Summary | None]") -> Found:
    """Count the files of `dataset: folder` by a function that lists a directory, or returns None if that takes long."""
    args: FolderArgs = arguments(FolderArgs, data.args)
    directory = _given(data)
    parts = [None if name is None else summary(directory / name) for name in _both(args)]
    if parts[0] is not None and len(parts[0].classes) == 1:
        raise UsageError(
            f"{directory / args.train} has one class, {parts[0].classes[0].name!r}: there is nothing to tell apart",
            "each class is a directory of its own; see data.args.train",
        )
    return _counted(directory, parts, args)


def shards_found(data: Data, header: "Callable[[Path, str], index.Header | None]") -> Found:
    """Count the samples of `dataset: shards` by a function that knows shards of a pattern, or returns None."""
    args: ShardsArgs = arguments(ShardsArgs, data.args)
    directory = _given(data)
    return _counted(directory, [None if name is None else header(directory, name) for name in _both(args)], args)


def _both(args: FolderArgs | ShardsArgs) -> tuple[str, str | None]:
    return args.train, args.test


def _counted(
    directory: Path, parts: "Sequence[listing.Summary | index.Header | None]", args: FolderArgs | ShardsArgs
) -> Found:
    train, test = parts
    if train is None or (test is None and args.test is not None):
        return Found(None, None, directory)
    digest = combined(train.digest, None if test is None else test.digest)
    return Found(train.count, None if test is None else test.count, directory, digest)


def combined(*digests: str | None) -> str:
    """Return one digest for those of the training and the test set."""
    import hashlib

    return hashlib.sha256("\n".join(digest or "" for digest in digests).encode()).hexdigest()


def _given(data: Data) -> Path:
    if data.path is None:
        raise UsageError(f"data.path: where the files of {data.dataset} lie is not said", "give it: data.path=DIR")
    return _absolute(data.path)


def _absolute(path: str) -> Path:
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - a Path raises where there is no such user


def idx_file(directory: Path, stem: str) -> Path:
    """Return the IDX file of a name: as it stands, with '.' before `idx` (as some mirrors spell it), or either .gz.

    Raises:
        UsageError: none of them exists.
    """
    dotted = stem.replace("-idx", ".idx")
    names = [stem, f"{stem}.gz", dotted, f"{dotted}.gz"]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise UsageError(
        f"{directory}: no {names[0]}, and no {', '.join(names[1:])}",
        f"put the four IDX files there (MNIST's are at {_MNIST_SOURCE}), or give their directory: data.path=DIR",
    )


def parse_header(head: bytes) -> tuple[int, ...]:
    """Return the dimensions that the first bytes of an IDX file of uint8 name, outermost first.

    Format: four bytes of magic, then one big-endian 32-bit size per dimension (Y. LeCun, "The MNIST database").

    Raises:
        ValueError: these bytes are no such header.
    """
    if len(head) < 4 or head[:3] != _MAGIC or not 1 <= head[3] <= 4:
        raise ValueError(f"starts with {head[:4].hex(' ') or 'nothing'}, not with an IDX header of bytes (00 00 08 ..)")
    length = header_length(head[3])
    if len(head) < length:
        raise ValueError(f"ends inside its header, after {len(head)} of {length} bytes")
    return struct.unpack(f">{head[3]}I", head[4:length])


def header_length(dimensions: int) -> int:
    """Return the bytes of a header."""
    return 4 + 4 * dimensions


def _directory(data: Data, env: Mapping[str, str]) -> Path:
    if data.path is not None:
        directory = _absolute(data.path)
    elif env.get("HPCTRAIN_DATA"):
        directory = _absolute(env["HPCTRAIN_DATA"]) / "mnist"
    else:
        raise UsageError(
            "data.path: where MNIST lies is not said, and HPCTRAIN_DATA is not set",
            f"download its four IDX files from {_MNIST_SOURCE} and give their directory: data.path=DIR",
        )
    if not directory.is_dir():
        origin = "data.path" if data.path is not None else "HPCTRAIN_DATA/mnist"
        files = "IDX" if data.dataset in {"mnist", "idx"} else ".bin"
        raise UsageError(
            f"{origin}: {directory} is no directory", f"give the directory of the {files} files: data.path=DIR"
        )
    return directory


def _paired(directory: Path, images: str, labels: str) -> tuple[int, ...]:
    """Return the shape of the images of a split, and check that it has as many labels."""
    image_file, label_file = idx_file(directory, images), idx_file(directory, labels)
    image_shape, label_shape = _shape(image_file, 3), _shape(label_file, 1)
    if image_shape[0] != label_shape[0]:
        raise UsageError(
            f"{image_file} holds {image_shape[0]} images, {label_file} holds {label_shape[0]} labels",
            "download both again: they do not belong together",
        )
    if 0 in image_shape:
        raise UsageError(f"{image_file} holds no images", "download it again")
    return image_shape


def _shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Read the dimensions of an IDX file and check that the file is as long as they say."""
    again = f"download it again, or check the copy: ls -l {path}"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(4096)
            if path.suffix == ".gz":
                # RFC 1952, section 2.3.1: the last four bytes hold the size of the content modulo 2^32.
                file.seek(max(size - 4, 0))
                content = int.from_bytes(file.read(4), "little")
                head = zlib.decompressobj(wbits=31).decompress(head, max_length=header_length(4))
            else:
                content = size
        shape = parse_header(head)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "give a directory that can be read: data.path=DIR") from None
    except (ValueError, zlib.error) as error:
        raise UsageError(f"{path}: {error}", again) from None
    if len(shape) != dimensions:
        raise UsageError(f"{path} has {len(shape)} dimensions, {dimensions} are expected", again)
    expected = header_length(len(shape)) + math.prod(shape)
    if content != (expected % 2**32 if path.suffix == ".gz" else expected):
        # Of a truncated .gz the last four bytes are any bytes, so that no count of bytes can be named.
        found = "is truncated or damaged" if path.suffix == ".gz" else f"has {content}"
        raise UsageError(f"{path} should hold {expected} bytes ({' x '.join(map(str, shape))}) but {found}", again)
    return shape
