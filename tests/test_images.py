from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.images import (
    UnreadableImageError,
    find_images,
    image_to_tensor,
    normalize,
    normalize_bytes,
    read_image,
    unnormalize,
)

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


def test_images_are_found_by_suffix_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.JPG"]


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
