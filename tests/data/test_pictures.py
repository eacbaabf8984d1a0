import io
import itertools
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from hpctrain.config.datasets import Augment, Data
from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

CPU = torch.device("cpu")


class Encoded:
    """A source of pictures in memory."""

    def __init__(self, contents, labels, names):
        self.contents, self.labels, self.names = contents, labels, names

    def __len__(self):
        return len(self.contents)

    def read(self, index):
        content = self.contents[index]
        if content is None:
            raise DataError(f"picture {index} is gone")
        return content, self.labels[index]

    def where(self, index):
        return f"picture {index}"


def flat(count, classes=3):
    """Pictures of one colour, by which they are known, of various sizes and shapes."""
    from PIL import Image

    contents = []
    for number in range(count):
        file = io.BytesIO()
        colour = (2 * number, 255 - 2 * number, 100)
        Image.new("RGB", (20 + number, 60 - number % 30), colour).save(file, "PNG")
        contents.append(file.getvalue())
    return Encoded(contents, [number % classes for number in range(count)], tuple("abc"[:classes]))


@pytest.fixture(scope="module")
def photographs():
    """The 400 real pictures, one of each class."""
    tar = Path(os.environ.get("HPCTRAIN_DATA", "nowhere")) / "imagenet-sample.tar"
    if not tar.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tar} is missing; HPCTRAIN_DATA must name the folder that has it")
        pytest.skip("HPCTRAIN_DATA names no folder with imagenet-sample.tar")
    with tarfile.open(tar) as archive:
        members = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        contents = [archive.extractfile(member).read() for member in members]
    names = tuple(member.name.partition("/")[0] for member in members)
    return Encoded(contents, list(range(len(names))), names)


def plan(samples=None, seed=0):
    class Known(msgspec.Struct):
        train_samples: int | None = samples
        seed: int = 0

    return Known(samples, seed)


def opened(train, test=None, *, samples=None, seed=0, **keys):
    from hpctrain.data import pictures

    args = {"size": 16, "resize": 18, **keys.pop("args", {})}
    data = msgspec.convert({"dataset": "folder", "workers": "2", **keys, "args": args}, Data)
    return pictures.load(data, train, test, plan(samples, seed), device=CPU, dtype=torch.float32)


def batches(part, *ids, epoch=0):
    from hpctrain.data.dataset import Wanted

    return list(part.stream(Wanted(torch.tensor(one), epoch) for one in ids))


def seen(part, *ids):
    """Which pictures were seen, by their colour."""
    red = (inputs[:, 0, 8, 8] * 0.229 + 0.485 for inputs, _ in batches(part, *ids))
    return [(one * 255 / 2).round().int().tolist() for one in red]


def test_a_batch_has_the_pictures_that_are_wanted_and_their_labels():
    data = opened(flat(50), flat(7))
    assert (data.train.count, data.test.count, data.validation) == (50, 7, None)
    assert (data.shape, data.outputs, data.task) == ((3, 16, 16), 3, "classes")
    assert seen(data.train, [3, 1, 49], [0]) == [[3, 1, 49], [0]]
    [(inputs, labels)] = batches(data.test, [6, 0, 2])
    assert inputs.shape == (3, 3, 16, 16)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 2]


def test_pixels_are_normalised_with_the_moments_of_imagenet_or_those_given():
    data = opened(flat(5), flat(5))
    [(inputs, _)] = batches(data.test, [4])
    wanted = (torch.tensor([8, 247, 100]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(inputs[0, :, 3, 3], wanted, atol=1e-5)
    data = opened(flat(5), flat(5), args={"mean": [0.5], "std": [0.25], "channels": "grey"})
    [(inputs, _)] = batches(data.test, [4])
    assert data.shape == (1, 16, 16)
    assert torch.allclose(inputs[0, 0], torch.full((16, 16), (159 / 255 - 0.5) / 0.25), atol=0.05)


def test_training_validation_and_test_pictures_are_each_picture_once():
    data = opened(flat(50), split={"test": 0.2, "validation": 0.1}, seed=3)
    parts = [data.train, data.validation, data.test]
    assert [part.count for part in parts] == [35, 5, 10]
    found = [seen(part, list(range(part.count)))[0] for part in parts]
    assert sorted(itertools.chain(*found)) == list(range(50))
    assert found[0] != sorted(found[0])


def test_a_plan_with_fewer_samples_uses_the_first_ones():
    assert opened(flat(9), flat(2), samples=4).train.count == 4
    with pytest.raises(DataError, match="folder has 9 training samples, the plan has 10"):
        opened(flat(9), flat(2), samples=10)


def test_classes_that_differ_between_training_and_testing_are_named():
    with pytest.raises(DataError) as caught:
        opened(flat(9), flat(9, classes=2))
    assert caught.value.message == "folder: training and test pictures are not of the same classes; c differs"


def test_a_picture_that_cannot_be_read_ends_the_run_and_is_named():
    train = flat(9)
    train.contents[4] = train.contents[4][:60]
    data = opened(train, flat(2))
    with pytest.raises(DataError, match=r"^picture 4: the picture is damaged"):
        batches(data.train, [0, 1], [3, 4])


def test_a_picture_that_cannot_be_read_is_replaced_by_the_next_of_its_part(capsys):
    train, split = flat(50), {"validation": 0.3}
    everything = list(range(35))
    intact = seen(opened(train, flat(2), split=split).train, everything)[0]
    place = 20
    train.contents[intact[place]] = None
    data = opened(train, flat(2), split=split, on_error="skip")
    wanted = [*intact[:place], intact[place + 1], *intact[place + 1 :]]
    assert seen(data.train, everything)[0] == wanted
    assert capsys.readouterr().out == f"hpctrain: skipped sample {place}: picture {intact[place]} is gone\n"


def digest(data, ids, epoch=0):
    return [inputs for inputs, _ in batches(data.train, *ids, epoch=epoch)]


def test_a_picture_is_varied_alike_whatever_batch_it_is_in_and_whoever_reads_it(photographs):
    ids = [[5, 250, 17, 399], [3, 3, 80]]
    first = torch.cat(digest(opened(photographs, photographs), ids, epoch=2))
    alone = [[one] for one in itertools.chain(*ids)]
    for workers in ("0", "3"):
        assert torch.equal(torch.cat(digest(opened(photographs, photographs, workers=workers), alone, epoch=2)), first)
    assert torch.equal(first[4], first[5])
    other_epoch = torch.cat(digest(opened(photographs, photographs), ids, epoch=3))
    other_seed = torch.cat(digest(opened(photographs, photographs, seed=1), ids, epoch=2))
    for other in (other_epoch, other_seed):
        assert ((first - other).abs().mean(dim=(1, 2, 3)) > 0.05).all()


def test_all_real_pictures_are_read(photographs):
    data = opened(photographs, photographs, args={"size": 64, "resize": 72})
    for part in (data.train, data.test):
        everything = torch.arange(400).split(64)
        found = list(part.stream(_wanted(everything)))
        assert [labels.tolist() for _, labels in found] == [one.tolist() for one in everything]
        assert all(inputs.isfinite().all() and (inputs.std(dim=(1, 2, 3)) > 0.01).all() for inputs, _ in found)


def _wanted(ids):
    from hpctrain.data.dataset import Wanted

    return (Wanted(one) for one in ids)


def test_without_random_crops_training_pictures_are_those_of_evaluation(photographs):
    data = opened_with(photographs, Augment(crop="none"))
    (trained, _), (tested, _) = batches(data.train, [1, 2])[0], batches(data.test, [1, 2])[0]
    assert torch.equal(trained, tested)


def test_a_padded_crop_moves_the_middle_of_a_picture(photographs):
    data = opened_with(photographs, Augment(crop="padded", padding=1))
    (trained, _), (tested, _) = batches(data.train, [1])[0], batches(data.test, [1])[0]
    around = torch.nn.functional.pad(tested, (2, 2, 2, 2))[0]
    places = [around[:, y + 2 : y + 32, x + 2 : x + 32] for y in range(3) for x in range(3)]
    assert any(torch.equal(trained[0, :, 1:-1, 1:-1], place) for place in places)


def opened_with(source, varied):
    from hpctrain.data import pictures

    data = msgspec.convert({"dataset": "folder", "args": {"size": 32, "resize": 40}}, Data)
    data = msgspec.structs.replace(data, augment=varied)
    return pictures.load(data, source, source, plan(), device=CPU, dtype=torch.float32)


def test_augmentation_sees_training_pictures_as_bytes_and_then_the_batch(monkeypatch):
    class Mark:
        def pixels(self, images, wanted):
            assert images.dtype == torch.uint8
            return torch.zeros_like(images)

        def batch(self, inputs, targets, wanted):
            return inputs + wanted.step, targets + 10

    from hpctrain.data import augment
    from hpctrain.data.dataset import Wanted

    monkeypatch.setattr(augment, "build", lambda *_, **__: Mark())
    data = opened(flat(5), flat(5), args={"mean": [0.0], "std": [1.0]})
    [(inputs, targets)] = data.train.stream([Wanted(torch.tensor([1, 2]), 0, 7)])
    assert (inputs == 7).all()
    assert targets.tolist() == [11, 12]
    [(inputs, targets)] = data.test.stream([Wanted(torch.tensor([1, 2]), 0, 7)])
    assert (inputs < 1.01).all()
    assert targets.tolist() == [1, 2]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_epochs():
    import simplejpeg

    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    source = Encoded([simplejpeg.encode_jpeg(pixels)] * 60, [0] * 60, ("a",))
    data = opened(source, source, args={"size": 64, "resize": 72})
    everything = list(torch.arange(60).split(20))
    used = []
    for _ in range(12):
        for inputs, _ in data.train.stream(_wanted(everything)):
            del inputs
        used.append(resident_bytes())
    # What is decoded in an epoch is 16 MB, what is read 4 MB, and the batches are 1 MB.
    assert used[-1] - used[2] < 8 * 2**20, used
