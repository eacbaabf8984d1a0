import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def test_an_image_is_what_safetensors_writes():
    from safetensors.torch import save

    from hpctrain.train.image import Image

    torch.manual_seed(0)
    tensors = {
        'with "quotes" and umlauts ü': torch.randn(3, 4).t(),
        "number": torch.tensor(3.0),
        "empty": torch.zeros(0, 5),
        **{
            str(dtype): torch.randint(0, 2, (5,)).to(dtype)
            for dtype in (
                torch.uint64, torch.int64, torch.float64, torch.complex64, torch.uint32, torch.int32, torch.bfloat16,
                torch.float16, torch.uint16, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
                torch.uint8, torch.bool,
            )
        },
    }  # fmt: skip
    image = Image(tensors, pinned=False)
    assert image.fits(tensors)
    assert not image.fits({**tensors, "number": torch.tensor(3)})
    image.fill(tensors)
    assert bytes(image.content) == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert bytes(Image({}, pinned=False).content) == save({})
