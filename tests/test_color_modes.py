"""Images of all color modes as upright RGB."""

from __future__ import annotations

import errno
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_fam.color_modes import UnreadableImageError, as_rgb
from captum_fam.images import read_image
from tests.image_bytes import GRAY, RGB, chunk, png_bytes, tiff_bytes


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def saved(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """An image as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return opened(file.getvalue())


def noise(height: int = 3, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# What stands on the right turns the stored pixels upright, as the standard of EXIF describes the eight orientations.
TURNS = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
    99: lambda pixels: pixels,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_cameras_orientation_is_applied_once(orientation: int, kind: str) -> None:
    stored = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(Image.fromarray(stored), kind, exif=exif)
    upright = as_rgb(image)
    np.testing.assert_array_equal(np.asarray(upright), TURNS[orientation](stored))
    np.testing.assert_array_equal(np.asarray(as_rgb(upright)), np.asarray(upright))
    again = saved(upright, kind)
    np.testing.assert_array_equal(np.asarray(as_rgb(again)), np.asarray(upright))


def test_pixels_as_stored_are_not_turned_later_either() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(Image.fromarray(noise()), "PNG", exif=exif)
    stored = as_rgb(image, upright=False)
    np.testing.assert_array_equal(np.asarray(stored), noise())
    np.testing.assert_array_equal(np.asarray(as_rgb(stored)), noise())


@pytest.mark.parametrize(
    "tag", [b"Exif\0\0no tags at all", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_broken_orientation_tag_is_ignored(tag: bytes) -> None:
    image = saved(Image.new("RGB", (5, 3), (255, 0, 0)), "PNG", exif=tag)
    assert as_rgb(image).size == (5, 3)


def test_an_orientation_that_is_no_number_is_ignored() -> None:
    image = Image.new("RGB", (5, 3))
    image.getexif()[0x0112] = "6"
    assert as_rgb(image).size == (5, 3)


def test_the_image_itself_stays_as_it_is() -> None:
    image = Image.fromarray(noise())
    image.getexif()[0x0112] = 6
    as_rgb(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), noise())
    assert image.getexif()[0x0112] == 6


DEEP = np.array([[0, 256, 257, 514], [32768, 65277, 65278, 65535]], dtype=np.uint16)
SHALLOW = [[0, 0, 1, 2], [127, 253, 254, 255]]  # divided by 257, rounded down


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(DEEP),
        Image.fromarray(DEEP.astype(np.int32)),
        Image.frombytes("I;16B", (4, 2), DEEP.astype(">u2").tobytes()),
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.frombytes("I;16B", (4, 2), DEEP.astype(">u2").tobytes()), "TIFF"),
        saved(Image.fromarray(DEEP), "JPEG2000"),
        opened(b"P5 4 2 65535\n" + DEEP.astype(">u2").tobytes()),
        opened(tiff_bytes(4, 2, 16, (65535 - DEEP).astype("<u2").tobytes(), white_is_zero=True)),
    ],
    ids=["I;16", "I", "I;16B", "png", "tiff", "big-endian tiff", "jpeg 2000", "pgm", "white is zero"],
)
def test_16_bit_gray_keeps_its_brightness(image: Image.Image) -> None:
    rgb = np.asarray(as_rgb(image))
    assert rgb[..., 0].tolist() == SHALLOW
    assert (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize("pixels", [[[0, 1, 128, 255]], [[7, 7]]])
def test_whole_numbers_of_8_bits_keep_their_brightness_and_a_warning_says_so(pixels: list[list[int]]) -> None:
    image = Image.fromarray(np.array(pixels, dtype=np.int32))
    assert image.mode == "I"
    with pytest.warns(UserWarning, match=r"moon: pixels of mode 'I' from \d+ to \d+ are taken for 8-bit pixels; for a"):
        rgb = np.asarray(as_rgb(image, "moon"))
    assert rgb[..., 0].tolist() == rgb[..., 2].tolist() == pixels


def test_dark_images_of_16_bits_stay_dark() -> None:
    dark = np.full((3, 5), 255, dtype=np.uint16)
    for image in (
        Image.fromarray(dark),
        saved(Image.fromarray(dark), "PNG"),
        opened(b"P5 5 3 65535\n" + b"\0\xff" * 15),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (np.asarray(as_rgb(image)) == 0).all()


def test_12_bit_gray_keeps_its_brightness() -> None:
    # Two pixels in three bytes: 0x000 and 0xfff, 0x800 and 0x101.
    image = opened(tiff_bytes(2, 2, 12, b"\x00\x0f\xff\x80\x01\x01"))
    assert np.asarray(as_rgb(image))[..., 0].tolist() == [[0, 255], [127, 16]]


def test_16_bit_color_keeps_its_brightness() -> None:
    row = struct.pack(">6H", 0, 32768, 65535, 1000, 2000, 3000)
    assert np.asarray(as_rgb(opened(png_bytes(2, 3, 16, RGB, row))))[2].tolist() == [[0, 128, 255], [3, 7, 11]]


@pytest.mark.parametrize("pixels", [[[-1, 5]], [[70000, 5]]])
def test_integers_beyond_16_bits_are_refused(pixels: list[list[int]]) -> None:
    with pytest.raises(UnreadableImageError, match=r"moon\.tif: pixels from (-1 to 5|5 to 70000), expected .* 16 bits"):
        as_rgb(Image.fromarray(np.array(pixels, dtype=np.int32)), "moon.tif")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(UnreadableImageError, match=r"heat\.tif: floating-point pixels of unknown range"):
        as_rgb(Image.fromarray(np.ones((3, 3), dtype=np.float32)), "heat.tif")


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(TypeError, match="image must be an image of PIL, got ndarray"):
        as_rgb(noise())  # type: ignore[arg-type]
    with pytest.raises(UnreadableImageError, match="photo: 0 x 4 pixels"):
        as_rgb(Image.new("RGB", (0, 4)), "photo")


def test_an_image_that_is_decoded_late_names_itself_when_it_is_broken() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "JPEG")
    with pytest.raises(UnreadableImageError, match=r"query: cannot be read as an image .*truncated"):
        as_rgb(opened(file.getvalue()[:700]), "query")


def palette_image(**options: object) -> Image.Image:
    """Red and blue by a palette."""
    image = Image.new("P", (2, 3))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1] * 3)
    return saved(image, "PNG", **options)


def left_transparent(*color: int) -> Image.Image:
    """A transparent column, and one of a color."""
    return Image.fromarray(np.array([[[9, 9, 9, 0], [*color, 255]]] * 3, dtype=np.uint8))


# Every image is (left, right); the left pixel is transparent.
@pytest.mark.parametrize(
    ("image", "right"),
    [
        (left_transparent(10, 20, 30), (10, 20, 30)),
        (left_transparent(40, 40, 40).convert("LA"), (40, 40, 40)),
        (palette_image(transparency=0), (0, 0, 255)),
        (palette_image(transparency=bytes([0, 255])), (0, 0, 255)),
        (left_transparent(40, 40, 40).convert("LA").convert("La"), (40, 40, 40)),
        (
            left_transparent(10, 20, 30).convert("RGBa"),
            (10, 20, 30),
        ),
        (
            left_transparent(40, 40, 40).convert("PA"),
            (40, 40, 40),
        ),
        (opened(png_bytes(2, 3, 8, GRAY, bytes([9, 40]), chunk(b"tRNS", b"\0\x09"))), (40, 40, 40)),
        (opened(png_bytes(2, 3, 8, RGB, bytes([9, 9, 9, 10, 20, 30]), chunk(b"tRNS", b"\0\x09" * 3))), (10, 20, 30)),
        (
            opened(
                png_bytes(2, 3, 16, GRAY, struct.pack(">2H", 1000, 257 * 40), chunk(b"tRNS", struct.pack(">H", 1000)))
            ),
            (40, 40, 40),
        ),
        (
            opened(
                png_bytes(
                    2,
                    3,
                    16,
                    RGB,
                    struct.pack(">6H", 900, 0, 900, 5140, 257, 0),
                    chunk(b"tRNS", struct.pack(">3H", 900, 0, 900)),
                )
            ),
            (20, 1, 0),
        ),
    ],
    ids=["RGBA", "LA", "P index", "P bytes", "La", "RGBa", "PA", "gray", "RGB", "gray 16", "RGB 16"],
)
def test_transparent_pixels_are_laid_on_white(image: Image.Image, right: tuple[int, int, int]) -> None:
    rgb = as_rgb(image)
    assert [rgb.getpixel((x, 2)) for x in (0, 1)] == [(255, 255, 255), right]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    rgb = as_rgb(Image.new("RGBA", (1, 1), (255, 0, 100, 51)))  # a fifth of the color
    assert rgb.getpixel((0, 0)) == (255, 204, 224)


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (Image.new("1", (2, 3), 1), (255, 255, 255)),
        (Image.new("L", (2, 3), 77), (77, 77, 77)),
        (Image.new("CMYK", (2, 3), (0, 255, 255, 0)), (255, 0, 0)),
        # In JPEG files of four channels, Adobe stores the inverted ink.
        (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        (saved(Image.new("CMYK", (2, 3), (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
        (Image.new("YCbCr", (2, 3), (76, 85, 255)), (255, 0, 0)),
        (Image.new("HSV", (2, 3), (0, 255, 255)), (255, 0, 0)),
        (Image.new("LAB", (2, 3), (255, 128, 128)), (255, 255, 255)),
        (Image.new("RGBX", (2, 3), (1, 2, 3, 4)), (1, 2, 3)),
    ],
    ids=["1", "L", "CMYK", "CMYK JPEG", "CMYK TIFF", "YCbCr", "HSV", "LAB", "RGBX"],
)
def test_every_mode_becomes_rgb(image: Image.Image, color: tuple[int, int, int]) -> None:
    rgb = as_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", image.size)
    np.testing.assert_allclose(rgb.getpixel((1, 2)), color, atol=2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (5, 3), color) for color in ((255, 0, 0), (0, 0, 255))]
    image = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert image.n_frames == 2
    assert as_rgb(image).getpixel((4, 2)) == (255, 0, 0)


def test_an_error_of_the_machine_is_told_from_one_of_the_file() -> None:
    class Failing(Image.Image):
        error: Exception

        def load(self) -> None:
            raise self.error

    def caught(error: Exception) -> UnreadableImageError:
        image = Failing()
        image.error = error
        with pytest.raises(UnreadableImageError, match="photo: ") as raised:
            as_rgb(image, "photo")
        return raised.value

    for error in (OSError(errno.EIO, "Input/output error"), MemoryError()):
        assert caught(error).machine_error is error
    for error in (
        OSError("image file is truncated"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("bad"),
    ):
        assert caught(error).machine_error is None


def test_32_bit_tiff_is_refused_whatever_its_values(tmp_path: Path) -> None:
    path = tmp_path / "moon.tif"
    Image.fromarray(np.array([[0, 200], [100, 255]], dtype=np.int32)).save(path)
    with pytest.raises(UnreadableImageError, match=r"moon\.tif: 32-bit pixels of unknown range"):
        read_image(path)
