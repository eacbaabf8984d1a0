import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config import schema
from hpctrain.config.datasets import Split
from hpctrain.data.locate import locate
from hpctrain.errors import UsageError
from hpctrain.plan import Samples


def idx(*shape, content=None):
    body = bytes(range(256)) * (1 + _product(shape) // 256) if content is None else content
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + body[: _product(shape)]


def _product(shape):
    product = 1
    for size in shape:
        product *= size
    return product


@pytest.fixture
def mnist(tmp_path):
    """A tiny MNIST: 20 training and 5 test images of 4 x 4, one file gzipped, one with a mirror's spelling."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(20, 4, 4))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(20, content=bytes(20))))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(5, 4, 4))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(5, content=bytes(5)))
    return tmp_path


def find(path, **more):
    return locate(schema.Data(dataset="mnist", path=str(path), **more), {})


def test_mnist_is_counted_from_headers(mnist):
    assert find(mnist) == Samples(train=20, test=5, path=str(mnist))
    assert find(mnist, samples=7) == Samples(train=7, test=5, path=str(mnist))


def test_a_relative_path_becomes_absolute(mnist, monkeypatch):
    monkeypatch.chdir(mnist.parent)
    assert find(mnist.name).path == str(mnist)


def test_the_environment_names_the_data(mnist, tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    (home / "mnist").symlink_to(mnist)
    found = locate(schema.Data(dataset="mnist"), {"HPCTRAIN_DATA": str(home)})
    assert found == Samples(train=20, test=5, path=str(home / "mnist"))


@pytest.mark.usefixtures("real_mnist")
def test_the_real_mnist_has_its_known_sizes():
    found = locate(schema.Data(dataset="mnist"))
    assert (found.train, found.test) == (60_000, 10_000)


def test_datasets_without_files():
    assert locate(schema.Data(dataset="digits"), {}) == Samples(train=1500, test=297)
    assert locate(schema.Data(dataset="digits", samples=100), {}) == Samples(train=100, test=297)
    assert locate(schema.Data(dataset="synthetic"), {}) == Samples(train=10_000, test=2_000)
    assert locate(schema.Data(dataset="synthetic", samples=3), {}) == Samples(train=3, test=1)


def said(path, **more):
    with pytest.raises(UsageError) as caught:
        find(path, **more)
    return str(caught.value).replace(str(path), "DIR")


def test_nothing_says_where_mnist_is():
    with pytest.raises(UsageError) as caught:
        locate(schema.Data(dataset="mnist"), {})
    assert str(caught.value) == (
        "data.path: where MNIST lies is not said, and HPCTRAIN_DATA is not set\n"
        "  download its four IDX files from https://ossci-datasets.s3.amazonaws.com/mnist/ and give their directory: "
        "data.path=DIR"
    )


def test_no_such_directory(mnist):
    assert said(mnist / "gone") == (
        "data.path: DIR is no directory\n  give the directory of the IDX files: data.path=DIR"
    )


def test_a_missing_file_is_named_with_its_spellings(mnist):
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    assert said(mnist) == (
        "DIR: no t10k-labels-idx1-ubyte, and no t10k-labels-idx1-ubyte.gz, t10k-labels.idx1-ubyte, "
        "t10k-labels.idx1-ubyte.gz\n"
        "  put the four IDX files there (MNIST's are at https://ossci-datasets.s3.amazonaws.com/mnist/), or give their "
        "directory: data.path=DIR"
    )


def test_too_many_samples_asked_for(mnist):
    assert said(mnist, samples=21) == (
        "data.samples: 21 are asked for, mnist has 20 training samples\n  use data.samples=20 or less, or leave it out"
    )


def test_a_truncated_file_is_found_before_the_queue(mnist):
    file = mnist / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    assert said(mnist) == (
        "DIR/train-images-idx3-ubyte should hold 336 bytes (20 x 4 x 4) but has 335\n"
        "  download it again, or check the copy: ls -l DIR/train-images-idx3-ubyte"
    )


def test_a_truncated_gz_is_found_before_the_queue(mnist):
    file = mnist / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    assert "train-labels-idx1-ubyte.gz should hold 28 bytes (20) but is truncated or damaged" in said(mnist)


@pytest.mark.parametrize("content", [b"", b"\0", b"<html>no such file</html>", idx(20, 4, 4)[:9]])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_no_idx_file_is_refused(mnist, content, suffix):
    (mnist / "train-images-idx3-ubyte").unlink()
    name = f"train-images-idx3-ubyte{suffix}"
    (mnist / name).write_bytes(gzip.compress(content) if suffix else content)
    assert said(mnist).startswith(f"DIR/{name}: ")


def test_images_and_labels_must_be_as_many(mnist):
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(19, 4, 4))
    assert "holds 19 images" in said(mnist)
    assert "holds 20 labels" in said(mnist)


def test_training_and_test_images_must_have_the_same_size(mnist):
    (mnist / "t10k-images.idx3-ubyte").write_bytes(idx(5, 4, 8))
    assert said(mnist) == (
        "DIR: the training images have 4 x 4 pixels, the test images 4 x 8\n"
        "  they do not belong together: download both again"
    )


def test_others_of_the_family_are_found_by_the_same_names(mnist):
    found = locate(schema.Data(dataset="idx", path=str(mnist), split=Split(validation=0.2)), {})
    assert found == Samples(train=16, validation=4, test=5, path=str(mnist))


def test_a_table_is_counted_and_split(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "1,2\n" * 2500)
    data = schema.Data(
        dataset="table", path=str(tmp_path / "t.csv"), args={"target": "y"}, split=Split(test=0.1, fold="1/3")
    )
    found = locate(data, {})
    assert found == Samples(train=1500, validation=750, test=250, path=str(tmp_path / "t.csv"))


def test_a_table_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    data = schema.Data(dataset="table", path=str(tmp_path / "t.csv"), args={"target": "y"}, split=Split(test=0.6))
    with pytest.raises(UsageError, match="table has no training samples: 1 are split into 0 for training, 0 for"):
        locate(data, {})


def with_images(mnist, total):
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(total, 4, 4))
    (mnist / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(total, content=bytes(total))))
    return mnist


@pytest.mark.parametrize(
    ("split", "total", "name", "hint"),
    [
        (Split(validation=0.1), 4, "validation", "set more apart: data.split.validation=0.25"),
        (Split(fold="1/5"), 4, "validation", "use fewer folds, or more samples"),
        (Split(test=0.1), 3, "test", "set more apart: data.split.test=0.33"),
        (Split(validation=0.4), 1, "validation", "use more samples"),
    ],
)
def test_a_part_that_is_asked_for_and_gets_no_sample_is_refused(mnist, split, total, name, hint):
    assert said(with_images(mnist, total), split=split) == (
        f"mnist has no {name} samples: {total} are split into {total} for training, 0 for validation and 0 for testing"
        f"\n  {hint}"
    )


@pytest.mark.parametrize(
    ("split", "total"), [(Split(validation=0.25), 4), (Split(test=0.33), 3), (Split(fold="1/4"), 4)]
)
def test_what_the_hint_says_gives_a_sample(mnist, split, total):
    found = find(with_images(mnist, total), split=split)
    assert found.train == total - 1


def test_labels_in_place_of_images(mnist):
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(20))
    assert "has 1 dimensions, 3 are expected" in said(mnist)


def test_locating_needs_neither_torch_nor_numpy():
    code = "import sys, hpctrain.data.locate as l; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
