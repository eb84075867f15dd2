"""The numbers that stand in a report, read without a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from captum_fam.report.page import Array


def numbers_of(data: dict[str, Any]) -> tuple[Array, Array]:
    """The integers of 16 and of 8 bits of a row."""
    numbers = zlib.decompress(base64.b85decode(data["numbers"].replace(",", "<"))[: data["bytes"]])
    wide = 2 * data["wide"]
    return np.frombuffer(numbers[:wide], "<i2"), np.frombuffer(numbers[wide:], "i1")


def values_at(integers: Array, place: dict[str, Any]) -> Array:
    """The values at a place among the integers of a row."""
    size = int(np.prod(place["shape"]))
    values: Array = integers[place["at"] : place["at"] + size].reshape(place["shape"]) * place.get("scale", 1)
    return values


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What the file says of each row, in its order."""
    text = path.read_text("utf-8")
    return [json.loads(one) for one in re.findall(r'class="data">(.*?)</script>', text)]
