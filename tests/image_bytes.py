"""Image files written byte by byte, in forms that Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib

GRAY, RGB = 0, 2
"""Color types of PNG."""


def png_bytes(width: int, height: int, depth: int, color_type: int, row: bytes, chunks: bytes = b"") -> bytes:
    """A PNG file whose rows are all alike.

    Args:
        width: width in pixels.
        height: height in pixels.
        depth: bits per channel.
        color_type: the color type of PNG.
        row: the pixels of a row.
        chunks: chunks in front of the pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file.

    Args:
        kind: four letters.
        content: the bytes of the chunk.
    """
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff_bytes(width: int, height: int, bits: int, pixels: bytes, *, white_is_zero: bool = False) -> bytes:
    """A little-endian TIFF file of one gray channel without compression.

    Args:
        width: width in pixels.
        height: height in pixels.
        bits: bits per pixel.
        pixels: the packed pixels.
        white_is_zero: whether zero stands for white.
    """
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, height),
        (258, short, bits),
        (259, short, 1),  # no compression
        (262, short, 0 if white_is_zero else 1),
        (273, long, 8),  # where the pixels begin
        (277, short, 1),  # channels
        (278, short, height),
        (279, long, len(pixels)),
    ]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1)
        + (struct.pack("<HH", value, 0) if kind == short else struct.pack("<I", value))
        for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
