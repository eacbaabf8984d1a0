import gzip
import os
import struct

import numpy as np
import pytest

from hpctrain.config import schema
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


@pytest.mark.skipif("HPCTRAIN_DATA" not in os.environ, reason="HPCTRAIN_DATA does not name the folder with mnist/")
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
