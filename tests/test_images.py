from __future__ import annotations

import os
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.image_folders import list_images
from captum_fam.images import (
    UnreadableImageError,
    image_from_bytes,
    image_to_tensor,
    normalize,
    normalize_bytes,
    read_image,
    unnormalize,
)
from tests.image_bytes import GRAY, RGB, chunk, png_bytes

RED_OVER_BLUE = Image.fromarray(np.repeat([[[255, 0, 0]], [[0, 0, 255]]], 2, axis=0).astype(np.uint8).repeat(6, axis=1))


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    RED_OVER_BLUE.save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == RED_OVER_BLUE.size[::-1]
    assert image.getpixel((image.width - 1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_images_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", (6, 4), "white").convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size, image.getpixel((3, 2))) == ("RGB", (6, 4), (255, 255, 255))


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_gray_keeps_its_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 5), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_named(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    if content == "cut":
        Image.effect_noise((64, 64), 90).save(path)
        content = path.read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg: cannot be read"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImageError, match="unknown range"):
        read_image(tmp_path / "float.tif")


def test_the_bytes_of_a_file_decide_its_format(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3), (1, 2, 3)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.JPEG")
    assert read_image(tmp_path / "image.JPEG").getpixel((4, 2)) == (1, 2, 3)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "webp", "tga", "jp2", "ico", "pcx", "dds", "qoi"])
def test_every_format_of_photographs_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    try:
        Image.new("RGB", (32, 16), (255, 0, 0)).save(path)
    except (ValueError, OSError) as error:
        pytest.skip(f"Pillow is built without it: {error}")
    assert list_images(tmp_path).files == (path,)
    np.testing.assert_allclose(np.asarray(read_image(path)).mean((0, 1)), (255, 0, 0), atol=2)


@pytest.mark.parametrize("name", ["letter.eps", "photo.jpg"])
def test_no_other_program_is_started(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / name, "EPS")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript is started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs", raising=False)
    with pytest.raises(UnreadableImageError, match=r"cannot be read .*EPS is no format of photographs"):
        read_image(tmp_path / name)
    assert list_images(tmp_path).files == (() if name == "letter.eps" else (tmp_path / name,))


def test_what_would_block_or_lead_nowhere_is_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "lost.jpg").symlink_to("nowhere")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "folder.jpg").mkdir()
    reasons = {
        "pipe.jpg": "a named pipe, expected an image file",
        "lost.jpg": "a link to a file that does not exist",
        "round.jpg": "cannot be read .*symbolic links",
        "folder.jpg": "a folder, expected an image file",
        "x" * 300 + ".jpg": "cannot be read .*name too long",
        "null\0.jpg": "cannot be read .*null",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="/dev/zero: a device"):
        read_image("/dev/zero")
    with pytest.raises(UnreadableImageError, match="is empty"):
        read_image(_written(tmp_path / "empty.jpg", b""))


def test_a_bomb_is_refused_by_its_size_before_its_pixels_are_read(tmp_path: Path) -> None:
    # The file has no pixels: reading them would be another error.
    for name, side in {"175.png": 13229, "huge.png": 60000}.items():
        bomb = _written(tmp_path / name, png_bytes(side, side, 8, RGB, b"")[:60])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(
                UnreadableImageError, match=rf"{name}: too large, {side} x {side} pixels .* 128; .*max_pixels"
            ):
                read_image(bomb)


def test_the_limit_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=600).size == (30, 20)
    with pytest.raises(UnreadableImageError, match=r"30 x 20 pixels are 0\.0 megapixels"):
        read_image(tmp_path / "a.png", max_pixels=599)
    monkeypatch.setattr("captum_fam.images.MAX_PIXELS", 599)
    with pytest.raises(UnreadableImageError, match="too large"):
        read_image(tmp_path / "a.png")


def test_a_text_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    with pytest.raises(UnreadableImageError, match=r"text\.png: cannot be read .*too large"):
        read_image(_written(tmp_path / "text.png", png_bytes(4, 3, 8, GRAY, bytes(4), text)))


@pytest.mark.parametrize(
    "name", [b"new\nline\x1b[2J.png", b"inv\xff\xfe.png", "\u202egnp.png".encode(), b"x" * 240 + b".png"]
)
def test_any_name_is_read_and_named_in_one_line_of_plain_text(name: bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_bytes(png_bytes(4, 3, 8, GRAY, bytes([0, 1, 2, 3])))
    (found,) = list_images(tmp_path).files
    assert os.fsencode(found) == path
    assert read_image(found).getpixel((3, 2)) == (3, 3, 3)
    found.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError) as caught:
        read_image(found)
    message = str(caught.value)
    assert message.isprintable()
    assert message.encode().decode() == message
    assert "png: cannot be read" in message


def test_pixels_as_stored_can_be_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    RED_OVER_BLUE.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", upright=False).tobytes() == RED_OVER_BLUE.tobytes()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_and_numbers_up_to_one_are_normalized_alike(channels_last: bool) -> None:
    image = Image.new("RGB", (4, 3), (255, 0, 51))
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 0.1)
    pixels = image_to_tensor(image)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 3, 4))
    torch.testing.assert_close(pixels[:, 1, 2], torch.tensor([1.0, 0.0, 0.2]))
    batch = (torch.stack([pixels, pixels]) * 255).to(torch.uint8)
    if channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    expected = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1).expand(2, 3, 3, 4)
    torch.testing.assert_close(normalize_bytes(batch, mean, std), expected)
    torch.testing.assert_close(normalize(batch / 255, mean, std), expected)
    assert batch.dtype == torch.uint8
    torch.testing.assert_close(unnormalize(expected, mean, std), batch / 255)


def test_the_bytes_of_a_file_are_read_as_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    RED_OVER_BLUE.save(tmp_path / "turned.png", exif=exif)
    data = (tmp_path / "turned.png").read_bytes()
    assert np.array_equal(np.asarray(image_from_bytes(data)), np.asarray(read_image(tmp_path / "turned.png")))
    for broken in (b"", b"no image", data[:-30], data[:40]):
        with pytest.raises(UnreadableImageError, match="the third image: "):
            image_from_bytes(broken, "the third image")


def test_bytes_of_too_many_pixels_are_refused() -> None:
    wide = png_bytes(20_000, 7_000, 1, GRAY, bytes(2500))  # 20 kilobytes, 140 megapixels
    with pytest.raises(UnreadableImageError, match="image: too large, 20000 x 7000"):
        image_from_bytes(wide)
