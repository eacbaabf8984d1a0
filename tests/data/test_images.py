import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hpctrain.config import schema
from hpctrain.config.datasets import Split
from hpctrain.data import idx
from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
CPU = torch.device("cpu")


def load(data, *, dtype=torch.float32, train_samples=1500, path=None, seed=0):
    from hpctrain.data import images

    return images.load(data, path=path, train_samples=train_samples, seed=seed, device=CPU, dtype=dtype)


def gather(data, index):
    from hpctrain.data.dataset import Wanted

    [batch] = data.train.stream([Wanted(index)])
    return batch


def test_digits_are_the_real_ones():
    data = load(schema.Data(dataset="digits"))
    assert (data.shape, data.outputs, data.train.count, data.test.count) == ((1, 8, 8), 10, 1500, 297)
    # counts of the ten classes in the published set, and its first row
    labels = torch.cat([data.train.targets, data.test.targets])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.train.inputs[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert int(data.train.inputs.max()) == 16


def test_training_images_are_normalised_exactly():
    data = load(schema.Data(dataset="digits", samples=100), dtype=torch.float64, train_samples=100)
    images, _ = gather(data, torch.arange(100))
    assert abs(images.mean().item()) < 1e-13
    assert abs(images.std(correction=0).item() - 1) < 1e-13


def test_a_batch_is_what_the_index_says():
    data = load(schema.Data(dataset="digits"), dtype=torch.float64)
    index = torch.tensor([7, 7, 0, 1499])
    images, labels = gather(data, index)
    raw = data.train.inputs[index].double() / 16
    everything = data.train.inputs.double() / 16
    expected = (raw - everything.mean()) / everything.std(correction=0)
    assert torch.allclose(images, expected, rtol=0, atol=1e-13)
    assert labels.equal(data.train.targets[index])
    assert data.train.inputs.dtype == torch.uint8


@pytest.mark.usefixtures("real_mnist")
def test_mnist_is_normalised_as_everyone_does():
    from hpctrain.data.locate import locate

    path = locate(schema.Data(dataset="mnist")).path
    data = load(schema.Data(dataset="mnist"), path=path, train_samples=60_000)
    images, labels = gather(data, torch.arange(10_000))
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(images.mean().item()) < 0.02
    assert images.min().item() == pytest.approx(-0.1307 / 0.3081, rel=1e-6)
    assert data.shape == (1, 28, 28)


def test_channels_are_normalised_each():
    from hpctrain.data.images import moments

    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (50, 3, 4, 4), np.uint8)
    pictures[:, 2] = 9
    mean, std = moments(pictures, 255)
    assert mean == pytest.approx(pictures.mean(axis=(0, 2, 3)) / 255)
    assert std[:2] == pytest.approx(pictures.std(axis=(0, 2, 3))[:2] / 255)
    assert std[2] == 1


def test_synthetic_images_are_the_same_everywhere_and_repeat_beyond_memory(monkeypatch):
    from hpctrain.data import images

    monkeypatch.setattr(images, "_SYNTHETIC_BYTES", 10 * 12)
    data = schema.Data(dataset="synthetic", args={"shape": [3, 2, 2], "classes": 4})
    one, again, other = (load(data, train_samples=25, seed=seed) for seed in (1, 1, 2))
    assert (one.train.count, one.test.count, one.shape, one.outputs) == (25, 5, (3, 2, 2), 4)
    index = torch.tensor([3, 13, 23])
    pictures, labels = gather(one, index)
    assert pictures[0].equal(pictures[1])
    assert len(labels.unique()) == 1
    assert pictures.equal(gather(again, index)[0])
    assert not pictures.equal(gather(other, index)[0])


def test_a_changed_dataset_is_refused():
    with pytest.raises(DataError, match=r"digits has 1500 training samples, the plan has 1501"):
        load(schema.Data(dataset="digits"), train_samples=1501)


def _file(path, shape, body, compressed=False):
    content = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + body
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


def test_idx_files_are_read_whole(tmp_path):
    for compressed in (False, True):
        path = _file(tmp_path / ("x.gz" if compressed else "x"), (2, 3), bytes(range(6)), compressed)
        array = idx.read(path)
        assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert array.flags.writeable


def test_a_truncated_idx_file_says_how_many_bytes_are_missing(tmp_path):
    path = _file(tmp_path / "x", (2, 3), bytes(5))
    with pytest.raises(DataError) as caught:
        idx.read(path)
    assert str(caught.value) == f"{path}: its header says 2 x 3 = 6 bytes, but 5 follow\n  download it again"


def test_a_truncated_gz_is_refused(tmp_path):
    path = _file(tmp_path / "x.gz", (2, 3), bytes(6), compressed=True)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match="cannot be read: Compressed file ended"):
        idx.read(path)


def test_a_large_file_is_mapped_and_never_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_MAPPED", 0)
    path = _file(tmp_path / "x", (2, 3), bytes(range(6)))
    array = idx.read(path)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.base is not None
    assert str(path) in Path("/proc/self/maps").read_text()
    array[1, 1] = 9
    assert path.read_bytes()[-6:] == bytes(range(6))


def test_a_gz_that_holds_more_than_its_header_says_is_not_unpacked(tmp_path):
    """60 MB of zeros in 60 kB, and a header that admits six of them."""
    path = _file(tmp_path / "x.gz", (2, 3), bytes(60_000_000), compressed=True)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"= 6 bytes, but more follow"):
        idx.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_header_that_the_file_cannot_fill_takes_no_memory(tmp_path, suffix):
    path = _file(tmp_path / f"x{suffix}", (2**32 - 1, 2**32 - 1, 2**10), bytes(10), compressed=bool(suffix))
    with pytest.raises(DataError, match=r"no file of \d+ bytes can hold that many" if suffix else "but 10 follow"):
        idx.read(path)


@pytest.fixture
def letters(tmp_path):
    """Files named as MNIST's, of 26 letters from 1 on."""
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 30)):
        _file(tmp_path / f"{name}-images-idx3-ubyte", (count, 5, 7), random.bytes(count * 35))
        labels = bytes(1 + label % 26 for label in range(count))
        _file(tmp_path / f"{name}-labels-idx1-ubyte.gz", (count,), labels, compressed=True)
    return tmp_path


def test_other_datasets_of_the_family_have_their_own_classes_and_moments(letters):
    data = load(schema.Data(dataset="idx"), path=str(letters), train_samples=60, dtype=torch.float64)
    assert (data.shape, data.outputs, data.train.count, data.test.count) == ((1, 5, 7), 27, 60, 30)
    images, labels = gather(data, torch.arange(60))
    assert abs(images.mean().item()) < 1e-13
    assert abs(images.std(correction=0).item() - 1) < 1e-13
    assert labels[:27].tolist() == [*range(1, 27), 1]


def test_training_and_test_images_must_have_the_same_size(letters):
    _file(letters / "t10k-images-idx3-ubyte", (30, 7, 5), bytes(30 * 35))
    with pytest.raises(DataError, match=r"training images are \(1, 5, 7\), test images \(1, 7, 5\)"):
        load(schema.Data(dataset="idx"), path=str(letters), train_samples=60)


def test_a_split_takes_from_the_training_images_and_fits_to_what_is_left(letters):
    from hpctrain.data.split import choose

    apart = Split(test=0.2, validation=0.1)
    data = load(
        schema.Data(dataset="idx", split=apart), path=str(letters), train_samples=42, dtype=torch.float64, seed=5
    )
    assert (data.train.count, data.validation.count, data.test.count) == (42, 6, 12)
    whole = idx.read(letters / "train-images-idx3-ubyte")
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        ids = choose(60, apart, 5)[name].ids(np.arange(part.count))
        assert (part.inputs[:, 0].numpy() == whole[ids]).all()
    images, _ = gather(data, torch.arange(42))
    assert abs(images.mean().item()) < 1e-13
