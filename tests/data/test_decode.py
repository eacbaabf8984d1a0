import io
import random
import struct
import tracemalloc
import zlib

import pytest

from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

WHOLE = {"scale": (1.0, 1.0), "ratio": (0.01, 100.0)}
MIDDLE = [0.5] * 22


def picture(height, width, seed=0):
    """A picture with smooth hills and a little noise, as photographs have them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + 4 * c) + c) * np.cos(y / (13 - 2 * c)) for c in range(3)]
    noise = generator.normal(0, 4, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


def encoded(pixels, kind="PNG", mode=None, **options):
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def rows(count=1, size=64, channels=3):
    return torch.full((count, size, size, channels), 7, dtype=torch.uint8).permute(0, 3, 1, 2)


def central(content, size=64, resize=72, channels="rgb"):
    from hpctrain.data import decode

    batch = rows(size=size, channels=3 if channels == "rgb" else 1)
    decode.central(content, batch[0], channels=channels, resize=resize, where="a.jpg")
    return batch[0]


def cropped(content, draws=MIDDLE, size=64, **options):
    from hpctrain.data import decode

    batch = rows(size=size)
    decode.random_resized(content, batch[0], draws, channels="rgb", where="a.jpg",
                          **{"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), **options})  # fmt: skip
    return batch[0]


def apart(ours, theirs):
    return np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int))


def test_evaluation_is_what_pillow_and_so_torchvision_makes():
    from PIL import Image

    pixels = picture(150, 201)
    wanted = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BILINEAR).crop((16, 4, 80, 68))
    assert apart(central(encoded(pixels)), wanted).max() <= 1


def test_a_random_part_is_what_pillow_makes_of_its_box():
    from PIL import Image

    from hpctrain.data import crop

    pixels, draws = picture(150, 201), np.random.default_rng(3).random(22).tolist()
    top, left, height, width = crop.random_resized(150, 201, draws, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    wanted = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR,
                                            box=(left, top, left + width, top + height))  # fmt: skip
    # Pillow also looks at pixels around the box; those in the middle are the same.
    assert apart(cropped(encoded(pixels), draws), wanted)[4:-4, 4:-4].max() <= 1


def test_a_random_part_is_what_torch_makes_of_its_box():
    from hpctrain.data import crop

    pixels, draws = picture(150, 201), np.random.default_rng(4).random(22).tolist()
    top, left, height, width = crop.random_resized(150, 201, draws, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    part = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, top : top + height, left : left + width]
    wanted = torch.nn.functional.interpolate(part.float(), (64, 64), mode="bilinear", antialias=True)
    assert (cropped(encoded(pixels), draws).float() - wanted[0]).abs().max() <= 1


def test_only_the_row_is_written_and_it_lies_channels_last():
    from hpctrain.data import decode

    batch = rows(3)
    decode.central(encoded(picture(90, 90), "JPEG"), batch[1], channels="rgb", resize=72, where="a")
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (batch[0] == 7).all()
    assert (batch[2] == 7).all()
    assert batch[1].float().std() > 10


@pytest.mark.parametrize("factor", [2, 3, 4, 9])
def test_large_jpeg_pictures_that_are_decoded_small_look_the_same(factor):
    from PIL import Image

    pixels = np.asarray(Image.fromarray(picture(64, 80)).resize((80 * factor, 64 * factor), Image.Resampling.BICUBIC))
    ours = cropped(encoded(pixels, "JPEG", quality=95), **WHOLE)
    wanted = cropped(encoded(pixels), **WHOLE)
    difference = (ours.int() - wanted.int()).abs().float()
    assert difference.mean() < 3
    assert difference.max() < 40


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 40000), (40000, 2), (64, 64)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_shapes_fill_the_row(shape, kind):
    content = encoded(np.full((*shape, 3), 200, np.uint8), kind)
    for row in (central(content), cropped(content), cropped(content, [0.0] * 22)):
        assert (row.int() - 200).abs().max() <= 2


def test_a_colour_picture_is_weighed_to_grey():
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[..., 1] = 255
    for kind in ("PNG", "JPEG"):
        assert (central(encoded(pixels, kind), channels="grey").int() - 150).abs().max() <= 2


@pytest.mark.parametrize(("kind", "mode"), [
    ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "1"), ("WEBP", "RGB"),
    ("BMP", "RGB"),
])  # fmt: skip
def test_other_kinds_of_pictures_become_rgb(kind, mode):
    content = encoded(np.full((80, 90, 3), 255, np.uint8), kind, mode)
    assert (central(content).int() - 255).abs().max() <= 4


def test_sixteen_bits_of_grey_are_scaled_not_cut_off():
    content = encoded(np.full((80, 80), 128 * 256, np.uint16))
    assert (central(content) == 128).all()


def test_bytes_between_two_markers_harm_nothing():
    content = encoded(picture(80, 80), "JPEG")
    place = content.find(b"\xff\xdb")
    mended = central(content[:place] + b"\0\0\0" + content[place:])
    assert (mended.int() - central(content).int()).abs().max() <= 8  # Pillow decodes by the exact transform


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_pictures_are_refused_wherever_they_end(kind):
    content = encoded(picture(60, 80), kind)
    needed = len(content) - (2 if kind == "JPEG" else 24)  # nobody needs a PNG's last checksums
    for cut in np.linspace(0, needed - 1, 60).astype(int):
        with pytest.raises(DataError) as caught:
            central(content[:cut])
        assert caught.value.message.startswith("a.jpg: ")
        assert "data.on_error=skip" in caught.value.hint


def test_a_file_that_is_no_picture_is_named_with_its_first_bytes():
    with pytest.raises(DataError) as caught:
        central(b"hello, world")
    assert str(caught.value) == (
        "a.jpg: no picture of a known format (JPEG, PNG, WEBP, BMP); it begins with 68 65 6c 6c 6f 2c 20 77\n"
        "  replace or remove it, or go on without it: data.on_error=skip"
    )


def huge_jpeg():
    content = bytearray(encoded(picture(16, 16), "JPEG"))
    place = content.find(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def huge_png():
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**16))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [huge_jpeg, huge_png])
def test_absurd_dimensions_are_refused_before_memory_is_taken(make):
    content = make()
    central(encoded(picture(80, 80), "JPEG"))  # what is imported late, now
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"^a\.jpg: the picture is too large: .*pixels"):
            central(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_mutated_pictures_give_a_picture_or_our_error(kind):
    content, generator = encoded(picture(40, 50), kind), random.Random(kind)  # noqa: S311
    refused: list[str] = []
    for _ in range(150):
        broken = bytearray(content)
        for _ in range(generator.randint(1, 8)):
            broken[generator.randrange(min(len(broken), generator.choice([64, len(broken)])))] = generator.randrange(
                256
            )
        try:
            central(bytes(broken))
        except DataError as error:
            refused.append(error.message)
    assert len(refused) > 5
    assert all(message.startswith("a.jpg: ") for message in refused)
