import io

import pytest

from hpctrain.data import jpeg

pytestmark = pytest.mark.torch
np = pytest.importorskip("numpy")

HEIGHT, WIDTH = 203, 151


def encoded(**options):
    from PIL import Image

    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    hills = [np.sin(x / (9 + 4 * c) + c) * np.cos(y / (13 - 2 * c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 9, (HEIGHT, WIDTH, 3))
    pixels = np.clip(128 + 90 * np.stack(hills, 2) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def decoded(content, bottom, channels="rgb"):
    from hpctrain.data import decode

    return decode.read(content, "a.jpg").pixels(channels, shrink=1, bottom=bottom).copy()


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"quality": 100}],
    ids=lambda options: "-".join(map(str, *options.items())),
)
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_rows_that_are_not_looked_at_are_not_decoded_and_the_others_are_the_same(options, channels):
    content = encoded(**options)
    whole = decoded(content, HEIGHT, channels)
    assert len(whole) == HEIGHT
    for bottom in range(1, HEIGHT - 30):
        part = decoded(content, bottom, channels)
        assert bottom <= len(part) < HEIGHT
        assert (part[:bottom] == whole[:bottom]).all(), bottom


def test_the_header_of_a_thumbnail_inside_is_not_taken_for_the_pictures():
    content = encoded(exif=b"Exif\0\0" + encoded(quality=20)[:30_000], comment=b"\xff\xc0" * 9)
    whole = decoded(content, HEIGHT)
    assert (decoded(content, 60)[:60] == whole[:60]).all()
    assert len(decoded(content, 60)) < len(whole)


def test_fill_bytes_before_markers_are_passed_over():
    content = encoded()
    at = content.index(b"\xff\xc0")
    filled = content[:at] + b"\xff\xff" + content[at:]
    assert (decoded(filled, 60)[:60] == decoded(content, HEIGHT)[:60]).all()
    assert jpeg.shortened(filled, 60) is not None


@pytest.mark.parametrize("end", [1, 2, 100, 5000])
def test_a_truncated_picture_is_refused_even_if_the_missing_part_is_not_looked_at(end):
    from hpctrain.errors import DataError

    with pytest.raises(DataError, match="the picture is damaged"):
        decoded(encoded(quality=95)[:-end], 10)


def test_a_progressive_picture_is_decoded_whole():
    content = encoded(progressive=True)
    assert jpeg.shortened(content, 60) is None
    assert len(decoded(content, 60)) == HEIGHT


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 9 + b"\xff\xd9",
                                     b"\xff\xd8\xff\xe0\x00\x00\xff\xd9", b"\xff\xd8\xff\xc0\xff\xd9"])  # fmt: skip
def test_what_has_no_frame_header_is_left_alone(content):
    assert jpeg.shortened(content, 10) is None
