import math

import pytest

pytestmark = pytest.mark.torch
np = pytest.importorskip("numpy")

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def drawn(count):
    from hpctrain.data import crop, draws

    return draws.uniform(0, 0, np.arange(count), count=crop.DRAWS, what="crop").tolist()


def boxes(height, width, count=20_000, scale=SCALE, ratio=RATIO):
    from hpctrain.data import crop

    return np.array([crop.random_resized(height, width, one, scale=scale, ratio=ratio) for one in drawn(count)])


def distance_from_uniform(values):
    """Kolmogorov and Smirnov's, of values that should be uniform in 0 to 1."""
    values = np.sort(values)
    return float(np.abs(values - np.arange(0.5, len(values)) / len(values)).max())


def test_area_shape_and_place_are_drawn_as_torchvision_defines_them():
    # Nothing this small is ever refused, so that the distributions are those of the first attempt.
    top, left, height, width = boxes(4000, 5000, scale=(0.1, 0.4), ratio=(0.5, 2.0)).T.astype(float)
    area = height * width / (4000 * 5000)
    shape = np.log(width / height) / math.log(2)
    limit = 1.95 / math.sqrt(len(area))  # is passed once in a thousand times
    assert distance_from_uniform((area - 0.1) / 0.3) < limit
    assert distance_from_uniform((shape + 1) / 2) < limit
    assert distance_from_uniform((top + 0.5) / (4000 - height + 1)) < limit
    assert distance_from_uniform((left + 0.5) / (5000 - width + 1)) < limit
    correlations = np.corrcoef([area, shape, top / (4000 - height), left / (5000 - width)])
    assert np.abs(correlations - np.eye(4)).max() < 0.03


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (1, 1), (2, 3), (30, 1000), (1000, 3)])
def test_boxes_lie_within_the_picture(height, width):
    for top, left, tall, wide in boxes(height, width, 2000).tolist():
        assert tall >= 1
        assert wide >= 1
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide


def test_attempts_that_do_not_fit_are_drawn_again():
    from hpctrain.data import crop

    # area 1 of 100 x 200: as a square it is 141 x 141, which does not fit; the second attempt does.
    draws = [1.0 - 2**-53, 0.5, 0.0, 0.5, *[0.5] * 16, 0.0, 0.999]
    assert crop.random_resized(100, 200, draws, scale=SCALE, ratio=RATIO) == (0, 160, 40, 40)


@pytest.mark.parametrize(("height", "width", "box"), [
    (100, 1000, (0, 433, 100, 133)),
    (1000, 100, (433, 0, 133, 100)),
    (100, 100, (0, 0, 100, 100)),
    (3, 1000, (0, 498, 3, 4)),
])  # fmt: skip
def test_what_no_attempt_fits_is_cut_out_of_the_middle(height, width, box):
    from hpctrain.data import crop

    never = [1.0 - 2**-53, 1.0 if height >= width else 0.0] * 10 + [0.5, 0.5]
    assert crop.random_resized(height, width, never, scale=(1.0, 1.0), ratio=RATIO) == box


@pytest.mark.parametrize(("height", "width", "scaled"), [
    (375, 500, (256, 341)),
    (500, 375, (341, 256)),
    (256, 256, (256, 256)),
    (10, 11, (256, 281)),
])  # fmt: skip
def test_the_shorter_side_is_scaled(height, width, scaled):
    from hpctrain.data import crop

    assert crop.resized(height, width, 256) == scaled


@pytest.mark.parametrize(("height", "width", "top", "left"), [(256, 341, 16, 58), (257, 256, 16, 16), (224, 225, 0, 0)])
def test_the_centre_is_where_torchvision_has_it(height, width, top, left):
    from hpctrain.data import crop

    assert crop.centre(height, width, 224) == (top, left, 224, 224)
