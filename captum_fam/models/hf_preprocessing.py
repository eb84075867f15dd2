"""The preprocessing in the files that transformers writes beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from captum_fam._files import need
from captum_fam._text import first_line
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD
from captum_fam.preprocessing import check_size

Size = int | tuple[int, int]


def read_preprocessing(source: str, is_local: bool) -> dict[str, Any] | None:
    """Read the preprocessing in ``preprocessor_config.json`` or ``processor_config.json``.

    Args:
        source: folder, or name on the Hugging Face hub.
        is_local: whether only files on this machine are read.

    Returns:
        Attributes of :class:`~captum_fam.models.EmbeddingModel`, by name; None if there is no such file.

    Raises:
        ValueError: for a file that is no JSON, or that has an impossible size, mean or interpolation.

    Example:
        >>> read_preprocessing("dinov2-small", is_local=True)["evaluation_crop"]
        (256, 224)
    """
    cached_file = need("transformers.utils", extra="hf", purpose=f"hf/{source}").cached_file
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(
            source,
            name,
            local_files_only=is_local,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            continue
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            content = content.get("image_processor", content if name.startswith("pre") else None)
            if content is not None:
                return _attributes(content)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{path} is no preprocessing of images ({type(error).__name__}: {first_line(error)})"
            ) from error
    return None


def _attributes(content: dict[str, Any]) -> dict[str, Any]:
    resized, is_shorter = _size(content.get("size", 224))
    size, crop = resized, None
    if content.get("do_center_crop", "crop_size" in content) and content.get("crop_size") is not None:
        size, _ = _size(content["crop_size"])
        crop = size
    elif is_shorter and content.get("crop_pct"):  # ConvNeXt
        crop = resized
        resized = int(_side(resized) / content["crop_pct"])
    found: dict[str, Any] = {"size": check_size(size)}
    if crop is not None and isinstance(crop, int):
        found["evaluation_crop"] = (max(_side(resized), crop), crop)
    normalizes = content.get("do_normalize", True)
    found["mean"] = tuple(map(float, content.get("image_mean", IMAGENET_MEAN))) if normalizes else (0.0,) * 3
    found["std"] = tuple(map(float, content.get("image_std", IMAGENET_STD))) if normalizes else (1.0,) * 3
    found["interpolation"] = Image.Resampling(content.get("resample", Image.Resampling.BILINEAR)).name.lower()
    return found


def _size(size: Any) -> tuple[Size, bool]:
    """A size, and whether it is the shorter side of the resized photograph."""
    if not isinstance(size, dict):
        return (size if isinstance(size, int) else tuple(size)), False
    if "shortest_edge" in size:
        return size["shortest_edge"], True
    height, width = size["height"], size["width"]
    return (height if height == width else (height, width)), False


def _side(size: Size) -> int:
    return size if isinstance(size, int) else min(size)
