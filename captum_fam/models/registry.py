"""Every embedding model by name: the paper's ten, torchvision's and timm's."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torchvision import models

from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD
from captum_fam.models import layouts
from captum_fam.models.bn_inception import BNInception
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.conv import Conv4Net, Conv64F
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.resnet import ContrastiveResNet, ResNet18
from captum_fam.models.resnet12 import ResNet12
from captum_fam.models.torchvision_models import OnePosition, WeightsError, backbone_names, load_backbone
from captum_fam.models.wide_resnet import WideResNet
from captum_fam.pooling import GAP

_CAFFE_MEAN = (128 / 255, 117 / 255, 104 / 255)
_CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class _Entry:
    """A network of the paper and how it is used; the default is the few-shot experiments."""

    build: Callable[..., nn.Module]
    layouts: tuple[Layout, ...]
    size: int = 84
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    evaluation_crop: tuple[int, int] | None = None


_contrastive = partial(
    _Entry, layouts=layouts.CONTRASTIVE, size=224, interpolation="bilinear", evaluation_crop=(256, 224)
)
_retrieval = _Entry(BNInception, layouts.BN_INCEPTION, 227, "bilinear", _CAFFE_MEAN, _CAFFE_STD, (256, 227))
_ENTRIES = {
    "conv4net": _Entry(Conv4Net, layouts.CONV),
    "conv64f": _Entry(Conv64F, layouts.CONV),
    "conv64f_21x21": _Entry(partial(Conv64F, padding=1), layouts.CONV),
    "resnet12": _Entry(ResNet12, layouts.RESNET12),
    "few_shot_resnet18": _Entry(ResNet18, layouts.RESNET18),
    "few_shot_resnet18_3x3_stem": _Entry(partial(ResNet18, stem="3x3"), layouts.RESNET18),
    "wide_resnet28_10": _Entry(WideResNet, layouts.WIDE_RESNET),
    "npid_resnet18": _contrastive(partial(ContrastiveResNet, 18)),
    "npid_resnet50": _contrastive(partial(ContrastiveResNet, 50)),
    "moco_v1_resnet50": _contrastive(partial(ContrastiveResNet, 50)),
    "moco_v2_resnet50": _contrastive(partial(ContrastiveResNet, 50, head="mlp")),
    "multi_similarity_bn_inception": _retrieval,
    "margin_bn_inception": _retrieval,
}

_SHORT = {"squeezenet": "squeezenet1_0", "conv4": "conv4net"}


def full_name(name: str) -> str:
    """The name that a short one stands for; any other as it is."""
    return _SHORT.get(name, name)


def list_models(source: Literal["paper", "torchvision", "timm"] = "paper") -> list[str]:
    """The names that :func:`create_model` knows.

    Args:
        source: the networks of the paper, the classification networks of torchvision, or the models of timm.

    Raises:
        ImportError: for ``"timm"``, if it is not installed.
        ValueError: for another source.
    """
    if source == "paper":
        return list(_ENTRIES)
    if source == "torchvision":
        return [f"torchvision/{name}" for name in backbone_names()]
    if source == "timm":
        from captum_fam.models.timm_models import _timm

        return [f"timm/{name}" for name in _timm().list_models()]
    raise ValueError(f'source must be "paper", "torchvision" or "timm", got {source!r}')


def create_model(
    name: str,
    weights: str | Path | None = None,
    *,
    layer: str | None = None,
    negative_slope: float | None = None,
    **options: Any,
) -> EmbeddingModel:
    """Build an embedding model and say how to explain it.

    =================================  =======  ==============  ================================================
    name                               images   feature map     embedding
    =================================  =======  ==============  ================================================
    ``conv4net``                       84       64 x 5 x 5      GAP
    ``conv64f``, ``conv64f_21x21``     84       64 x 19 x 19    GAP; 21 x 21
    ``resnet12``                       84       640 x 5 x 5     GAP
    ``few_shot_resnet18``              84       512 x 3 x 3     GAP; ``few_shot_resnet18_3x3_stem``: 11 x 11
    ``wide_resnet28_10``               84       640 x 21 x 21   GAP
    ``npid_resnet18``                  224      512 x 7 x 7     GAP, linear to 128, L2
    ``npid_resnet50``                  224      2048 x 7 x 7    GAP, linear to 128, L2
    ``moco_v1_resnet50``               224      2048 x 7 x 7    GAP, linear to 128, L2
    ``moco_v2_resnet50``               224      2048 x 7 x 7    GAP, MLP to 128, L2
    ``multi_similarity_bn_inception``  227      1024 x 7 x 7    GMP, linear to 512, L2
    ``margin_bn_inception``            227      1024 x 7 x 7    GMP, linear to 512, L2
    =================================  =======  ==============  ================================================

    ``torchvision/NAME``, or NAME alone, is a classification network of torchvision without its classifier; and
    ``timm/NAME`` a model of timm. ``conv4`` is short for ``conv4net``, ``squeezenet`` for ``squeezenet1_0``. What the
    paper calls MoCo is most likely ``lemniscate_resnet50_update.pth``, which ``npid_resnet50`` loads.

    Args:
        name: one of these.
        weights: None: random ones. A file of weights: ours, or as published by lemniscate, MoCo, ms-loss, ProtoNet,
            CloserLook, FRN, RelationNet, MetaOptNet, CAN or S2M2, see :mod:`captum_fam.models.layouts`. For
            torchvision and timm also ``"DEFAULT"``, which downloads the pretrained ones.
        layer: dotted name of the module to explain; None: the one whose output is pooled; for torchvision and timm
            what :func:`~captum_fam.find_layer` finds, with these weights: random ones are for trying out.
        negative_slope: of the LeakyReLUs in a few-shot network; None: 0.1 as in the paper, or 0 (ReLU) for weights of
            a repository that trains with ReLU.
        options: of the network's class: ``drop_rate`` of ``resnet12``, ``dropout`` of ``wide_resnet28_10``, ...

    Returns:
        The model in eval mode, with layer, pooling, head, preprocessing and similarity.

    Raises:
        ValueError: for an unknown name or layer.
        WeightsError: (a ``ValueError``) for weights that cannot be had, or do not fit; the message lists the
            parameters that are missing, left over or of another shape.
        TypeError: for options that the network does not have.

    Example:
        >>> net = create_model("npid_resnet50", weights="lemniscate_resnet50.pth")
        >>> fam = LayerFAM(net.model, net.layer, similarity=net.similarity)
        >>> images = torch.stack([net.preprocess(PIL.Image.open(path)) for path in paths])
    """
    name = full_name(name)
    if name in _ENTRIES:
        return _create(name, _ENTRIES[name], weights, layer, negative_slope, options)
    if negative_slope is not None or options:
        given = ", ".join([*options, *(["negative_slope"] if negative_slope is not None else [])])
        raise TypeError(f"{given}: only for the networks of the paper, not for {name!r}")
    if name.startswith("timm/"):
        from captum_fam.models.timm_models import load_timm

        return load_timm(name.removeprefix("timm/"), weights, layer)
    plain = name.removeprefix("torchvision/")
    if plain in backbone_names():
        return _from_torchvision(plain, weights, layer)
    known = [*list_models(), *backbone_names()]
    close = difflib.get_close_matches(name, known) or difflib.get_close_matches(plain, known)
    hint = f"did you mean {' or '.join(close)}?" if close else "list_models() lists them; timm's are timm/NAME"
    raise ValueError(f"model {name!r} is unknown; {hint}")


def _create(
    name: str,
    entry: _Entry,
    weights: str | Path | None,
    layer: str | None,
    negative_slope: float | None,
    options: dict[str, Any],
) -> EmbeddingModel:
    if weights == "DEFAULT":
        raise WeightsError(f"weights: {name} has none that can be downloaded here; give the path of a file")
    try:
        model: Any = entry.build(**options)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    layer = layer or "features"
    if layer not in dict(model.named_modules()):
        raise ValueError(f"layer {layer!r} is no module of {name}; it is 'features' or one below it")
    layout = None if weights is None else load_weights(model, weights, entry.layouts)
    slope = negative_slope if negative_slope is not None or layout is None else layout.negative_slope
    leaky = [module for module in model.modules() if isinstance(module, nn.LeakyReLU)]
    if negative_slope is not None and not leaky:
        raise TypeError(f"negative_slope: {name} has no LeakyReLU")
    if slope is not None:
        for module in leaky:
            module.negative_slope = slope
    mean, std = entry.mean, entry.std
    if layout is not None and layout.normalization is not None:
        mean, std = ((value,) * 3 for value in layout.normalization)
    return EmbeddingModel(
        name=name,
        model=model.eval(),
        layer=layer,
        size=entry.size,
        any_size=True,
        mean=mean,
        std=std,
        pooling=model.pooling if layer == "features" else None,
        head=getattr(model, "head", None),
        interpolation=entry.interpolation,
        evaluation_crop=entry.evaluation_crop,
        layout=None if layout is None else layout.name,
    )


def _from_torchvision(name: str, weights: str | Path | None, layer: str | None) -> EmbeddingModel:
    found = load_backbone(name, weights, layer)
    preprocessing = models.get_model_weights(name)["DEFAULT"].transforms()
    is_pooled = layer is None and found.token_grid is None
    has_norm = isinstance(found.model, models.ConvNeXt | models.MaxVit)
    return EmbeddingModel(
        **{**vars(found), "name": f"torchvision/{name}"},
        pooling=GAP() if is_pooled else None,
        head=OnePosition(found.model.get_submodule("classifier")) if is_pooled and has_norm else None,
        interpolation=preprocessing.interpolation.value,
        evaluation_crop=(preprocessing.resize_size[0], preprocessing.crop_size[0]),
    )
