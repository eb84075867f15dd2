"""The preprocessing with which a network was trained, as far as attributes of the network have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from captum_fam.images import IMAGENET_MEAN
from captum_fam.preprocessing import LARGEST_SIDE, Preprocessing

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def preprocessing_of(model: nn.Module) -> tuple[Preprocessing, bool]:
    """Find the preprocessing of a network.

    Networks of timm, open_clip and transformers have it in their attributes, also inside other modules. For any other
    network it is assumed: 224 x 224 pixels with the mean and standard deviation of ImageNet. If the first convolution
    takes another number of channels than three, each channel has the mean 0 and the standard deviation 1.

    Args:
        model: the network.

    Returns:
        The preprocessing, and whether it was found; False if it was assumed.

    Example:
        >>> preprocessing, is_found = preprocessing_of(nn.Conv2d(4, 8, 3))
        >>> preprocessing.mean, is_found
        ((0.0, 0.0, 0.0, 0.0), False)
    """
    channels = input_channels(model)
    for module in model.modules():  # from the outside: the tower of open_clip may hold a network of timm
        for read in (_of_open_clip, _of_timm, _of_transformers):
            found = read(module)
            if found is not None and len(found.mean) == channels:
                return found, True
    size = next((side for module in model.modules() if (side := _size_of(getattr(module, "image_size", None)))), 224)
    if channels == 3:
        return Preprocessing(size), False
    return Preprocessing(size, mean=(0.0,) * channels, std=(1.0,) * channels), False


def evaluation_crop_of(model: nn.Module) -> tuple[int, int] | None:
    """Find the resizing and the center crop with which the accuracy of a network of timm was measured.

    Args:
        model: the network, or a module with the network inside.

    Returns:
        Shorter side after the resizing and side of the crop, in pixels; None for other networks, and for images that
        are not square.

    Example:
        >>> evaluation_crop_of(nn.Conv2d(3, 8, 3)) is None
        True
    """
    for module in model.modules():
        if _of_open_clip(module) is not None or _of_transformers(module) is not None:
            return None
        config = _timm_config(module)
        size = None if config is None else _timm_size(module, config)
        if config is not None and isinstance(size, int):
            # The default and the rounding of timm.data.create_transform.
            return math.floor(size / (config.get("crop_pct") or 0.875)), size
    return None


def found_or_assumed(model: object) -> tuple[Preprocessing, str | None]:
    """The preprocessing of a model, with a note where it had to be assumed.

    Args:
        model: a network; or a function, for which the preprocessing is always assumed.

    Returns:
        The preprocessing, and a sentence for the user; None if the preprocessing was found.

    Example:
        >>> found_or_assumed(lambda images: images.mean((2, 3)))[0].size
        224
    """
    preprocessing, is_found = preprocessing_of(model if isinstance(model, nn.Module) else nn.Identity())
    if is_found:
        return preprocessing, None
    height, width = preprocessing.height_and_width
    is_imagenet = preprocessing.mean == IMAGENET_MEAN
    normalized = "normalized as for ImageNet" if is_imagenet else "not normalized: their values are in [0, 1]"
    return preprocessing, (
        f"the preprocessing of the model is not known: pictures are resized to {height} x {width} pixels and "
        f"{normalized}; pass preprocess=, a function from an image of PIL to the input of the model, or "
        "an EmbeddingModel"
    )


def input_channels(model: nn.Module) -> int:
    """The channels that the first convolution of a network takes.

    Args:
        model: the network.

    Returns:
        Number of channels, C; 3 for a network without convolutions.

    Example:
        >>> input_channels(nn.Sequential(nn.Conv2d(13, 8, 3), nn.Conv2d(8, 8, 3)))
        13
    """
    first = _first_convolution(model)
    return 3 if first is None else first.in_channels


def input_dimensions(model: nn.Module) -> int:
    """The spatial dimensions of the input of a network, by its first convolution.

    Args:
        model: the network.

    Returns:
        1 for signals, 2 for images, 3 for volumes; 2 for a network without convolutions.

    Example:
        >>> input_dimensions(nn.Conv1d(1, 8, 3))
        1
    """
    first = _first_convolution(model)
    return 2 if first is None else len(first.kernel_size)


def _first_convolution(model: nn.Module) -> nn.modules.conv._ConvNd | None:
    return next((module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)), None)


def _of_timm(module: nn.Module) -> Preprocessing | None:
    config = _timm_config(module)
    if config is None:
        return None
    return _made(_timm_size(module, config), config["mean"], config["std"], config.get("interpolation"))


def _timm_config(module: nn.Module) -> Mapping[str, Any] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, name, None)
        if isinstance(config, Mapping) and config.get("input_size") and config.get("mean") and config.get("std"):
            return config
    return None


def _timm_size(module: nn.Module, config: Mapping[str, Any]) -> int | tuple[int, int] | None:
    # The network may have been made for another size than its weights.
    made_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return _size_of(made_for or tuple(config["input_size"])[-2:])


def _of_open_clip(module: nn.Module) -> Preprocessing | None:
    config = getattr(module, "preprocess_cfg", None)
    if not isinstance(config, Mapping) or not config.get("mean"):
        return None
    return _made(_size_of(config.get("size")), config["mean"], config["std"], config.get("interpolation"))


def _of_transformers(module: nn.Module) -> Preprocessing | None:
    config = getattr(module, "config", None)
    return None if getattr(config, "model_type", None) is None else config_preprocessing(config)


def config_preprocessing(config: Any) -> Preprocessing:
    """The usual preprocessing of a model type of transformers, for models without a file of their preprocessing.

    Args:
        config: configuration of transformers, of a vision model or of a model with a vision tower.

    Returns:
        The preprocessing.

    Example:
        >>> from types import SimpleNamespace
        >>> config_preprocessing(SimpleNamespace(model_type="siglip_vision_model", image_size=384)).mean
        (0.5, 0.5, 0.5)
    """
    vision = getattr(config, "vision_config", None) or config
    kind, channels = config.model_type, getattr(vision, "num_channels", 3)
    size = _size_of(getattr(vision, "image_size", None)) or 224
    if channels != 3:
        return Preprocessing(size, mean=(0.0,) * channels, std=(1.0,) * channels)
    if kind.startswith("siglip") or kind in ("vit", "beit"):
        return Preprocessing(size, mean=_HALF, std=_HALF, interpolation="bilinear" if kind == "vit" else "bicubic")
    if "clip" in kind:
        return Preprocessing(size, mean=_CLIP_MEAN, std=_CLIP_STD, interpolation="bicubic")
    return Preprocessing(size, interpolation="bicubic")


def _made(
    size: int | tuple[int, int] | None, mean: Sequence[float], std: Sequence[float], interpolation: object
) -> Preprocessing:
    known = interpolation if interpolation in _INTERPOLATIONS else "bilinear"
    return Preprocessing(size or 224, mean=tuple(mean), std=tuple(std), interpolation=str(known))


def _size_of(size: object) -> int | tuple[int, int] | None:
    """A size from one or two whole numbers; None for anything else."""
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    if not all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides) or len(sides) not in (1, 2):
        return None
    return sides[0] if len(set(sides)) == 1 else sides
