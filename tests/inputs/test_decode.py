"""Images as Pillow reads them; what is damaged, and what has more than 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from pictures import encoded, pixels
from PIL import Image

from shapray.inputs.decode import FORMATS, decode

COLOUR = Image.fromarray(pixels(0, 9, 7))
GREY = COLOUR.convert("L")
FADED = Image.fromarray(pixels(1, 9, 7, channels=4))
DEEP = np.random.default_rng(2).integers(0, 65536, (9, 7)).astype(np.uint16)


def as_pillow(data, mode):
    """(channels, height, width) uint8, the first frame."""
    array = np.array(Image.open(io.BytesIO(data)).convert(mode))
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def png(array, width=None):
    """A PNG of 16 bits; of another width than it has, if one is given."""
    height, real_width, n_channels = array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[n_channels]
    header = struct.pack(">IIBBBBB", width or real_width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("image", [COLOUR, GREY, GREY.convert("1")], ids=["colour", "grey", "bits"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_as_pillow_reads_it(kind, image, mode):
    data = encoded(image, kind)
    assert torch.equal(decode(data, mode), as_pillow(data, mode))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "data",
    [
        encoded(COLOUR.convert("CMYK"), "JPEG"),
        encoded(COLOUR, "JPEG", progressive=True),
        encoded(FADED),
        encoded(FADED.convert("LA")),
        encoded(FADED, "WEBP", lossless=True),
        encoded(COLOUR.quantize(9)),
        encoded(COLOUR.quantize(9), transparency=bytes(range(9))),
        encoded(COLOUR.quantize(9), "GIF", transparency=3),
        encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_palettes_transparency_and_other_colours_become_what_pillow_makes_of_them(data, mode):
    assert torch.equal(decode(data, mode), as_pillow(data, mode))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read(kind):
    frames = [Image.fromarray(pixels(n, 9, 7)).quantize(9).convert("RGB") for n in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert torch.equal(decode(data, "RGB"), as_pillow(data, "RGB"))


@pytest.mark.parametrize(
    "image",
    [
        png(DEEP[..., None]),
        encoded(Image.fromarray(DEEP), "TIFF"),
        encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        b"P5 7 9 65535\n" + DEEP.astype(">u2").tobytes(),
        Image.fromarray(DEEP),
        DEEP,
        torch.from_numpy(DEEP),
    ],
    ids=["PNG", "TIFF", "big-endian TIFF", "PGM", "PIL image", "array", "tensor"],
)
def test_grey_of_16_bits_keeps_them(image):
    expected = torch.from_numpy(DEEP).float()[None] / 65535
    assert torch.equal(decode(image, "L"), expected)
    if not isinstance(image, np.ndarray | torch.Tensor):
        assert torch.equal(decode(image, "RGB"), expected.expand(3, -1, -1))


@pytest.mark.parametrize("n_channels", [2, 3, 4])
def test_colour_of_16_bits_is_read_with_8(n_channels):
    array = np.random.default_rng(3).integers(0, 65536, (9, 7, n_channels))
    found = decode(png(array), "RGB").float() / 255
    shown = array[..., :3] if n_channels > 2 else array[..., [0, 0, 0]]
    assert (found - torch.from_numpy(shown / 65535).permute(2, 0, 1)).abs().max() < 1.01 / 255


@pytest.mark.parametrize(
    ("array", "words"), [(DEEP.astype(np.int32), "integers"), (DEEP.astype(np.float32), "floats")]
)
def test_pixels_of_unknown_white_are_refused(array, words):
    with pytest.raises(ValueError, match=f"32-bit {words}.*8 and 16 bits are read"):
        decode(encoded(array, "TIFF"), "L")


# -- what is damaged


def test_a_flipped_bit_of_a_png_is_found():
    data = encoded(GREY)
    expected = decode(data, "L")
    n_refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decode(bytes(damaged), "L")
        except ValueError:
            n_refused += 1
        else:
            assert torch.equal(found, expected), f"bit {bit}"
    assert n_refused > 0.9 * 8 * len(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_is_cut_off_is_refused(kind):
    data = encoded(COLOUR, kind)
    expected = decode(data, "RGB")
    for length in range(len(data)):
        try:
            found = decode(data[:length], "RGB")
        except ValueError as error:
            assert str(error)  # noqa: PT017
        else:  # nothing but padding was lost
            assert length > len(data) - 5
            assert torch.equal(found, expected)


@pytest.mark.parametrize("width", [10**7, 3 * 10**7])  # of which Pillow warns, and refuses
def test_an_image_that_would_fill_the_memory_is_refused(width):
    with pytest.raises(ValueError, match=r"more than 89,478,485 pixels"):
        decode(png(DEEP[..., None], width=width), "L")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "0 bytes"),
        (b"no image at all", "no image.*BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP are read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "no image"),
        (None, "it is a NoneType; encoded bytes"),
        ("images/3.png", "it is a str; encoded bytes"),
        ({"image": b""}, "it is a dict; encoded bytes"),
        (np.zeros(5, np.uint8), r"shape is \(5,\); mode L needs \(1, height, width\)"),
        (np.zeros((5, 4, 3), np.uint8), r"shape is \(3, 5, 4\)"),
        (np.zeros((5, 4), np.int64), "int64; uint8, uint16 or floats"),
    ],
)
def test_what_is_no_image_is_said(image, words):
    with pytest.raises(ValueError, match=words):
        decode(image, "L")


def test_shades_keep_their_meaning():
    smooth = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    for image in (smooth, np.stack([smooth] * 3, axis=2)):
        for kind in ("JPEG", "PNG", "TIFF"):
            for mode, n_channels in (("L", 1), ("RGB", 3)):
                found = decode(encoded(image, kind), mode)
                assert found.shape == (n_channels, 8, 8)
                assert (found - torch.from_numpy(smooth).float()).abs().max() < 5
