import pytest

from hpctrain.config import schema
from hpctrain.data.cifar_files import LAYOUTS
from hpctrain.data.locate import locate
from hpctrain.errors import DataError, UsageError
from hpctrain.plan import Samples

np = pytest.importorskip("numpy")

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write(folder, dataset="cifar10", per_file=12):
    """Write files of random pixels; image i of a file has the label i modulo the classes."""
    layout = LAYOUTS[dataset]
    random = np.random.default_rng(0)
    made = {}
    for names in layout.files.values():
        for name in names:
            content = random.integers(0, 256, (per_file, layout.record), np.uint8)
            content[:, layout.labels - 1] = np.arange(per_file) % layout.classes
            (folder / name).write_bytes(content.tobytes())
            made[name] = content
    names = NAMES if dataset == "cifar10" else [f"kind{label}" for label in range(100)]
    (folder / layout.names).write_text("\n".join(names) + "\n\n")
    return made


def section(folder, dataset="cifar10", *only):
    return schema.Data(dataset=dataset, path=str(folder), args={"only": list(only)})


def load(folder, dataset="cifar10", *only):
    torch = pytest.importorskip("torch")
    from hpctrain.data import images

    data = section(folder, dataset, *only)
    count = locate(data).train
    return images.load(
        data, path=str(folder), train_samples=count, seed=0, device=torch.device("cpu"), dtype=torch.float64
    )


@pytest.mark.parametrize(("dataset", "train"), [("cifar10", 60), ("cifar100", 12)])
def test_images_are_counted_by_the_sizes_of_the_files(tmp_path, dataset, train):
    write(tmp_path, dataset)
    assert locate(section(tmp_path, dataset)) == Samples(train=train, test=12, path=str(tmp_path))


def test_the_images_of_some_classes_are_counted_by_their_labels(tmp_path):
    write(tmp_path)
    assert locate(section(tmp_path, "cifar10", "bird", "airplane")) == Samples(train=15, test=3, path=str(tmp_path))


@pytest.mark.torch
def test_images_have_planes_rows_and_columns_and_their_fine_labels(tmp_path):
    files = write(tmp_path, "cifar100", per_file=120)
    data = load(tmp_path, "cifar100")
    assert (data.shape, data.outputs, data.train.count, data.test.count) == ((3, 32, 32), 100, 120, 120)
    record = files["train.bin"][7]
    assert data.train.targets[7] == record[1] == 7
    for channel, row, column in [(0, 0, 0), (1, 2, 3), (2, 31, 30)]:
        assert data.train.inputs[7, channel, row, column] == record[2 + channel * 1024 + row * 32 + column]


@pytest.mark.torch
def test_the_files_of_the_training_set_follow_each_other_and_channels_are_normalised(tmp_path):
    import torch

    from hpctrain.data.dataset import Wanted

    files = write(tmp_path)
    data = load(tmp_path)
    whole = np.concatenate([files[f"data_batch_{number}.bin"] for number in range(1, 6)])
    assert data.train.targets.tolist() == whole[:, 0].tolist()
    assert (data.train.inputs.numpy().reshape(60, -1) == whole[:, 1:]).all()
    [(images, _)] = data.train.stream([Wanted(torch.arange(60))])
    assert images.mean((0, 2, 3)).abs().max() < 1e-12
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-12


@pytest.mark.torch
def test_chosen_classes_are_numbered_as_they_are_named(tmp_path):
    files = write(tmp_path)
    data = load(tmp_path, "cifar10", "bird", "airplane")
    assert (data.outputs, data.train.count, data.test.count) == (2, 15, 3)
    assert data.test.targets.tolist() == [1, 0, 1]
    assert data.test.inputs[1].flatten().tolist() == files["test_batch.bin"][2, 1:].tolist()


@pytest.mark.torch
def test_a_label_that_there_is_not_is_told_with_its_place(tmp_path):
    write(tmp_path)
    content = bytearray((tmp_path / "test_batch.bin").read_bytes())
    content[5 * 3073] = 10
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/test_batch.bin: image 5 (byte 15365) has the label 10, 9 is the largest\n"
        "  is it the binary version of this dataset? Unpack it again"
    )


AGAIN = (
    "\n  unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and give the directory of its .bin files: "
    "data.path=DIR"
)


def said(folder, *only):
    with pytest.raises(UsageError) as caught:
        locate(section(folder, "cifar10", *only))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_truncated_is_found_before_the_queue(tmp_path):
    write(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert said(tmp_path) == (
        f"DIR/data_batch_3.bin: has 36875 bytes, which is no multiple of the 3073 of one image{AGAIN}"
    )
    file.write_bytes(b"")
    assert said(tmp_path) == f"DIR/data_batch_3.bin: is empty{AGAIN}"
    file.unlink()
    assert said(tmp_path) == f"DIR/data_batch_3.bin: No such file or directory{AGAIN}"
    assert said(tmp_path / "gone") == (
        "data.path: DIR is no directory\n  give the directory of the .bin files: data.path=DIR"
    )


def test_a_class_that_there_is_not_is_told_with_those_there_are(tmp_path):
    write(tmp_path)
    assert said(tmp_path, "bird", "plane") == (
        f"data.args.only: there is no class 'plane'\n  the classes are: {', '.join(NAMES)}"
    )
    (tmp_path / "batches.meta.txt").write_text("airplane\nbird\n")
    assert said(tmp_path, "bird", "airplane") == f"DIR/batches.meta.txt: has 2 names, 10 are expected{AGAIN}"
    (tmp_path / "batches.meta.txt").unlink()
    assert said(tmp_path, "bird", "airplane") == f"DIR/batches.meta.txt: No such file or directory{AGAIN}"
