"""Images of any color mode as upright RGB."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image

from captum_fam._text import printable
from captum_fam._warnings import warn_user

_WHITE_IS_ZERO = 0  # a value of the tag PhotometricInterpretation
# Turns that undo the orientation tag; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Numbers of errors of a file: it is missing, may not be read, or has a name that leads to no file.
_ERRORS_OF_FILES = {
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


class UnreadableImageError(ValueError):
    """An image that is missing, broken, too large or no image; the message names the file.

    Example:
        >>> from captum_fam.images import read_image
        >>> try:
        ...     read_image("no-such.jpg")
        ... except UnreadableImageError as error:
        ...     print(error)
        no-such.jpg: no such file
    """

    @property
    def machine_error(self) -> MemoryError | OSError | None:
        """The error of the machine, such as a failing disk or too many open files; None for an error of the file.

        After an error of the machine the same file may be readable later, so that results must not be made without it.
        """
        cause = self.__cause__
        if isinstance(cause, MemoryError):
            return cause
        # Decoders raise an OSError without a number for a broken file.
        if isinstance(cause, OSError) and cause.errno not in (None, *_ERRORS_OF_FILES):
            return cause
        return None


def as_rgb(image: Image.Image, name: str = "image", *, upright: bool = True) -> Image.Image:
    """Convert an image of any mode to RGB.

    The image is rotated by the orientation tag of the camera; a broken tag is ignored. Gray, palette, CMYK, LAB,
    YCbCr and HSV become RGB, 16-bit pixels are divided by 257, transparent pixels become white, and of an animation
    that was just opened, the first frame is taken.

    Args:
        image: the image, which does not change. Pixels of mode ``"I"`` are taken for 16-bit pixels, which Pillow reads
            in this mode too; but for 8-bit pixels if the image is made of numbers that are at most 255, as
            ``Image.fromarray`` of whole numbers gives it. A warning says so.
        name: name of the image, for messages. Default: ``"image"``.
        upright: whether the image is rotated by its orientation tag. Default: True.

    Returns:
        A new image in mode ``"RGB"``. It has no orientation tag, so that nothing rotates it a second time.

    Raises:
        TypeError: for anything but an image of PIL.
        UnreadableImageError: for an image that is broken or has no pixels, for floating-point pixels, and for integers
            beyond 16 bits.

    Example:
        >>> as_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
        >>> as_rgb(Image.new("I;16", (1, 1), 32768)).getpixel((0, 0))
        (127, 127, 127)
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"{name} must be an image of PIL, got {type(image).__name__}")
    with errors_of(name):
        image.load()
        turn = _TURNS.get(_orientation(image)) if upright else None
        rgb = _convert(image, name)
    rgb.info = {}
    return rgb if turn is None else rgb.transpose(turn)


def _convert(image: Image.Image, name: str) -> Image.Image:
    """A new image in mode RGB."""
    if 0 in image.size:
        raise UnreadableImageError(f"{name}: {image.width} x {image.height} pixels are no image")
    if image.mode == "F":
        raise UnreadableImageError(f"{name}: floating-point pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _convert_deep_gray(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    color = image.info.get("transparency")
    if isinstance(color, tuple) and max(color) > 255:
        # Of 16-bit colors, Pillow keeps the high byte of the pixels, and both bytes of the transparent color.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in color)
    if image.mode == "La":
        image = image.convert("LA")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _convert_deep_gray(image: Image.Image, name: str) -> Image.Image:
    """The pixels of 16 bits of a gray image, as RGB."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(ExifTags.Base.BitsPerSample) == (32,):
        raise UnreadableImageError(f"{name}: 32-bit pixels of unknown range; save it with 8 or 16 bits")
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise UnreadableImageError(
            f"{name}: pixels from {low} to {high}, expected the range of 16 bits; save it with 8 or 16 bits"
        )
    if image.mode == "I" and image.format is None and 0 < high <= 255:
        warn_user(
            f"{name}: pixels of mode 'I' from {low} to {high} are taken for 8-bit pixels; for a dark image of 16 bits, "
            'pass a uint16 array to Image.fromarray, which gives the mode "I;16"',
            1,
        )
        return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    # Pillow gives the numbers of a TIFF file unchanged, also where white is 4095 (12 bits), or where white is zero.
    if tags.get(ExifTags.Base.BitsPerSample) == (12,):
        gray = (pixels.astype(np.int32) * 255 // 4095).astype(np.uint8)
    elif tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        gray = ((65535 - pixels) // 257).astype(np.uint8)
    else:
        gray = (pixels // 257).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        gray[pixels == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The orientation tag; 1, upright, if there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # for broken tags, their reader raises exceptions of many kinds
        return 1
    return orientation if isinstance(orientation, int) else 1


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """A context that raises all errors of reading as UnreadableImageError with the name of the image.

    Args:
        name: name of the image, for messages.

    Raises:
        UnreadableImageError: (a ``ValueError``) if the block raises any exception.

    Example:
        >>> with errors_of("wren.jpg"):
        ...     raise OSError("image file is truncated")
        Traceback (most recent call last):
        ...
        captum_fam.color_modes.UnreadableImageError: wren.jpg: cannot be read as an image (image file is truncated)
    """
    try:
        yield
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: no such file") from error
    except MemoryError as error:
        raise UnreadableImageError(f"{name}: not enough memory to read it") from error
    except Exception as error:  # for a broken file, decoders raise exceptions of many kinds
        reason = getattr(error, "strerror", None) or printable(error)
        raise UnreadableImageError(f"{name}: cannot be read as an image ({reason})") from error
