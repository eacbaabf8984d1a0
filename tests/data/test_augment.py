import math

import numpy as np
import pytest

from hpctrain.config.datasets import Augment, Data
from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

EVERYTHING = {
    "crop": "padded",
    "padding": 2,
    "flip": True,
    "jitter": 0.4,
    "cutout": 3,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}
MIXING = ("mixup", "cutmix")


def build(*, seed=1, shape=(3, 8, 8), classes=10, white=255, **options):
    from hpctrain.data import augment

    return augment.build(Augment(**options), seed=seed, shape=shape, classes=classes, white=white)


def wanted(ids, epoch=0, step=0, micro=0):
    from hpctrain.data.dataset import Wanted

    return Wanted(torch.as_tensor(ids), epoch, step, micro)


def random_images(count, shape=(3, 8, 8), white=255):
    random = np.random.default_rng(count)
    return torch.from_numpy(random.integers(0, white + 1, (count, *shape), np.uint8))


def vary(made, images, batch, labels=None):
    """Return what training gets of a batch, as the parts of a dataset do it."""
    pixels = made.pixels(images, batch)
    labels = torch.arange(len(images)) % 10 if labels is None else labels
    return (pixels, *made.batch(pixels.to(torch.float32) / 255, labels, batch))


def test_without_options_nothing_is_varied():
    assert build() is None
    assert build(crop="none") is None
    assert build(crop="auto", padding=3, scale=(0.5, 1.0)) is None


@pytest.mark.parametrize("option", ["crop", "flip", "jitter"])
def test_each_option_of_pixels_alone_leaves_the_rest_to_the_byte(option):
    images = random_images(32)
    labels = torch.arange(32) % 10
    made = build(**{key: value for key, value in EVERYTHING.items() if key in {option, "padding"}})
    batch = wanted(range(32))
    pixels, inputs, targets = vary(made, images, batch, labels)
    assert pixels.dtype == torch.uint8
    assert not pixels.equal(images)
    assert inputs.equal(pixels.to(torch.float32) / 255)
    assert targets is labels


@pytest.mark.parametrize("option", ["cutout", "mixup", "cutmix", "label_smoothing"])
def test_each_option_of_batches_alone_leaves_pixels_alone(option):
    images = random_images(32)
    made = build(**{option: EVERYTHING[option]})
    assert made.pixels(images, wanted(range(32))) is images


def test_a_padded_crop_is_a_window_of_the_image_with_a_black_margin():
    from hpctrain.data.augment import crop_padded

    images = random_images(49, (2, 5, 7))
    places = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    framed = np.zeros((49, 2, 11, 13), np.uint8)
    framed[:, :, 3:8, 3:10] = images.numpy()
    found = crop_padded(images, places, 3).numpy()
    for image, frame, (top, left) in zip(found, framed, places.tolist(), strict=True):
        assert (image == frame[:, top : top + 5, left : left + 7]).all()
    assert crop_padded(images, torch.full((49, 2), 3), 3).equal(images)


def test_every_window_is_drawn_equally_often():
    """The place of one white pixel tells the window."""
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 255
    found = build(crop="padded", padding=2, shape=(1, 9, 9)).pixels(
        image.expand(10_000, 1, 9, 9), wanted(range(10_000))
    )
    counts = (found[:, 0] > 0).sum(0).numpy()
    assert counts[2:7, 2:7].sum() == 10_000
    chi = ((counts[2:7, 2:7] - 400) ** 2 / 400).sum()
    assert abs(chi - 24) < 5 * math.sqrt(48)


def test_about_every_second_image_is_mirrored_and_another_half_in_the_next_epoch():
    images = random_images(4000)
    made = build(flip=True)
    mirrored = []
    for epoch in (0, 1):
        found = made.pixels(images, wanted(range(4000), epoch))
        same = (found == images).flatten(1).all(1)
        assert (same | (found == images.flip(3)).flatten(1).all(1)).all()
        mirrored.append(~same)
        assert abs(int(mirrored[-1].sum()) - 2000) < 5 * math.sqrt(1000)
    assert abs(int((mirrored[0] & mirrored[1]).sum()) - 1000) < 5 * math.sqrt(750)


@pytest.mark.parametrize(("channels", "white"), [(3, 255), (1, 255), (1, 16), (3, 100)])
def test_colours_change_by_the_published_formulas(channels, white):
    """Each is factor x image + (1 - factor) x other, in whole values; the others are black, mean grey, own grey."""
    from hpctrain.data.augment import jitter

    images = random_images(40, (channels, 6, 5), white)
    factors = torch.from_numpy(np.random.default_rng(1).uniform(0, 2, (40, 3)).astype(np.float32))

    def grey(image):
        return np.floor((0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]) + 0.5) if channels == 3 else image

    def whole(image):
        return np.clip(np.round(image), 0, white)

    found = jitter(images, factors, white).numpy()
    for result, image, (brightness, contrast, saturation) in zip(
        found, images.numpy().astype(np.float64), factors.numpy().astype(np.float64), strict=True
    ):
        expected = whole(brightness * image)
        expected = whole(contrast * expected + (1 - contrast) * grey(expected).mean())
        if channels == 3:
            expected = whole(saturation * expected + (1 - saturation) * grey(expected))
        # float32 may round a value the other way that lies half-way between two
        assert np.abs(result - expected).max() <= 1
        assert (result != expected).mean() < 0.05


def test_factors_of_one_change_no_byte():
    from hpctrain.data.augment import jitter

    for white in (16, 255):
        images = random_images(20, white=white)
        assert jitter(images, torch.ones(20, 3), white).equal(images)


def test_jitter_keeps_to_its_range():
    """Of grey images only the brightness shows: no factor outside of 0.6 to 1.4, and no preference within."""
    images = torch.full((5000, 1, 2, 2), 100, dtype=torch.uint8)
    found = build(jitter=0.4, shape=(1, 2, 2)).pixels(images, wanted(range(5000)))[:, 0, 0, 0].to(torch.float64)
    assert 60 <= found.min() < 61 <= 139 < found.max() <= 140
    assert abs(found.mean() - 100) < 5 * (80 / math.sqrt(12)) / math.sqrt(5000)
    strong = build(jitter=3.0, shape=(1, 2, 2)).pixels(images, wanted(range(5000)))
    assert (strong.min(), strong.max()) == (0, 255)


def test_cutout_blanks_one_square_that_the_border_may_cut():
    images = torch.ones(10_000, 2, 9, 7)
    found, _ = build(cutout=4).batch(images, torch.zeros(10_000, dtype=torch.int64), wanted(range(10_000)))
    assert found[:, 0].equal(found[:, 1])
    blank = found[:, 0] == 0
    for axis, length in ((2, 9), (1, 7)):
        lines = blank.any(axis)
        counts = lines.sum(1)
        first, last = lines.int().argmax(1), length - 1 - lines.flip(1).int().argmax(1)
        assert (counts == last - first + 1).all()
        assert ((counts == 4) | (first == 0) | (last == length - 1)).all()
        # the middle of the square is any pixel equally often, so that the first line is at 0 for three of them
        assert abs(int((first == 0).sum()) - 10_000 * 3 / length) < 5 * math.sqrt(10_000 * 3 / length)
    assert blank.sum((1, 2)).equal(blank.any(1).sum(1) * blank.any(2).sum(1))


def test_labels_are_smoothed_as_torch_does_it():
    labels = torch.tensor([0, 3, 9, 3])
    logits = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, targets = build(label_smoothing=0.1).batch(logits, labels, wanted(range(4)))
    assert targets.sum(1).tolist() == pytest.approx([1] * 4, abs=1e-15)
    entropy = torch.nn.functional.cross_entropy
    assert entropy(logits, targets).item() == pytest.approx(entropy(logits, labels, label_smoothing=0.1).item())


def test_mixup_mixes_inputs_and_targets_by_the_same_share():
    inputs, labels = torch.rand(16, 5, dtype=torch.float64), torch.arange(16)
    made = build(mixup=1.0, classes=16, shape=(5,))
    shares = []
    for step in range(20):
        mixed, targets = made.batch(inputs.clone(), labels, wanted(range(16), step=step))
        assert torch.allclose(mixed, targets @ inputs, rtol=0, atol=1e-15)
        assert torch.allclose(targets.sum(0), torch.ones(16, dtype=torch.float64))  # each is the partner of one
        shares.append(targets.diagonal().min().item())
    assert len(set(shares)) == 20


def test_cutmix_puts_a_box_of_the_partner_and_weighs_targets_by_its_area():
    inputs = torch.arange(16, dtype=torch.float64)[:, None, None, None].expand(16, 3, 10, 8).clone()
    made = build(cutmix=1.0, classes=16)
    areas = set()
    for step in range(50):
        mixed, targets = made.batch(inputs.clone(), torch.arange(16), wanted(range(16), step=step))
        for number, (image, target) in enumerate(zip(mixed, targets, strict=True)):
            own = (image[0] == number).double().mean().item()
            assert target[number].item() == pytest.approx(own)
            others = image[image != number].unique()
            assert len(others) <= 1
            for other in others.long().tolist():
                assert target[other].item() == pytest.approx(1 - own)
                rows, columns = (image[0] == other).any(1).sum(), (image[0] == other).any(0).sum()
                assert rows * columns == (image[0] == other).sum()
        areas.add(round(targets.diagonal().min().item(), 6))
    assert len(areas) > 15


def test_of_mixup_and_cutmix_one_is_drawn_for_each_micro_batch():
    inputs = torch.arange(8, dtype=torch.float32)[:, None, None, None].expand(8, 1, 6, 6)
    made = build(mixup=1.0, cutmix=1.0, shape=(1, 6, 6))
    blended = 0
    for step in range(200):
        mixed, _ = made.batch(inputs.clone(), torch.arange(8), wanted(range(8), step=step, micro=step % 3))
        blended += int((mixed != mixed.round()).any())
    assert abs(blended - 100) < 5 * math.sqrt(50)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 3.0, 50.0])
def test_shares_follow_the_beta_distribution(alpha):
    """Mean, variance and fourth moment of Beta(alpha, alpha) about its mean."""
    from hpctrain.data.augment import symmetric_beta

    uniform = np.random.default_rng(0).random((40_000, 2))
    draws = np.array([symmetric_beta(alpha, first, second) for first, second in uniform]) - 0.5
    assert np.abs(draws).max() <= 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = variance**2 * (3 - 6 / (2 * alpha + 3))
    assert abs(draws.mean()) < 5 * math.sqrt(variance / 40_000)
    assert abs((draws**2).mean() - variance) < 5 * math.sqrt(max(fourth - variance**2, 1e-9) / 40_000)
    assert abs((draws**4).mean() / fourth - 1) < 0.1
    for edge in (0.0, 1 - 2**-53):
        assert 0 <= symmetric_beta(alpha, edge, 0.0) <= 1


@pytest.mark.parametrize("passes", [1, 2, 3, 5])
def test_samples_are_varied_alike_however_they_are_shared_out(passes):
    """Everything that belongs to a sample: not one byte depends on the company it has in a batch, or on the pass."""
    made = build(**{key: value for key, value in EVERYTHING.items() if key not in MIXING})
    images, labels = random_images(30), torch.arange(30) % 10
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:30]
    whole = vary(made, images, wanted(ids, epoch=3, step=8, micro=0), labels)
    parts = [
        vary(made, images[part], wanted(ids[part], epoch=3, step=99, micro=number), labels[part])
        for number, part in enumerate(torch.arange(30).tensor_split(passes))
    ]
    for kind in range(3):
        assert torch.cat([part[kind] for part in parts]).equal(whole[kind])


def test_draws_follow_seed_epoch_sample_step_and_micro_batch_alone():
    images = random_images(16)
    same = vary(build(**EVERYTHING), images, wanted(range(16), 1, 2, 3))
    torch.manual_seed(7)  # nobody's state has a part in it
    again = vary(build(**EVERYTHING), images, wanted(range(16), 1, 2, 3))
    assert all(one.equal(two) for one, two in zip(same, again, strict=True))
    for other in (wanted(range(16), 2, 2, 3), wanted(range(1, 17), 1, 2, 3)):
        assert not vary(build(**EVERYTHING), images, other)[0].equal(same[0])
    assert not vary(build(seed=2, **EVERYTHING), images, wanted(range(16), 1, 2, 3))[0].equal(same[0])
    for other in (wanted(range(16), 1, 3, 3), wanted(range(16), 1, 2, 4)):
        pixels, _, targets = vary(build(**EVERYTHING), images, other)
        assert pixels.equal(same[0])
        assert not targets.equal(same[2])


def test_a_single_sample_is_its_own_partner():
    made = build(mixup=1.0, cutmix=1.0)
    for step in range(10):
        inputs, targets = made.batch(torch.ones(1, 3, 8, 8), torch.tensor([4]), wanted([0], step=step))
        assert torch.allclose(inputs, torch.ones(1, 3, 8, 8))
        assert targets.argmax().item() == 4


def test_training_batches_are_varied_and_test_batches_are_not():
    from hpctrain.data import images

    def batches(**options):
        data = Data(dataset="digits", augment=Augment(**options))
        made = images.load(data, path=None, train_samples=1500, seed=0, device=torch.device("cpu"), dtype=torch.float32)
        return [next(part.stream([wanted(range(64))])) for part in (made.train, made.test)]

    (plain, labels), tested = batches()
    (varied, soft), again = batches(**EVERYTHING)
    assert not varied.equal(plain)
    assert (labels.dtype, soft.shape) == (torch.int64, (64, 10))
    assert all(one.equal(two) for one, two in zip(tested, again, strict=True))
    # white is 16 in this dataset: nothing gets whiter
    (brighter, _), _ = batches(jitter=1.0)
    assert brighter.max() == plain.max()


@pytest.mark.parametrize(("options", "message"), [
    ({"crop": "padded", "padding": 8}, "data.augment.padding: 8 pixels can move all 8 out of sight; give at most 7"),
    ({"cutout": 8}, "data.augment.cutout: a square of 8 blanks all 8 pixels; give at most 7"),
])  # fmt: skip
def test_images_that_turn_out_too_small_are_refused(options, message):
    with pytest.raises(DataError) as caught:
        build(shape=(1, 12, 8), **options)
    assert str(caught.value) == message


def test_half_a_class_counts_as_the_likelier_one():
    from hpctrain.train.objective import Objective

    correct = Objective("classes", classes=3).score
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3]])
    assert correct(logits, torch.tensor([0, 1, 1])) == 2
    assert correct(logits, torch.tensor([[0.6, 0.4, 0], [0.6, 0.4, 0], [0, 0.1, 0.9]])) == 2
