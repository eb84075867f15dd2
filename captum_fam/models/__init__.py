"""Embedding models: the networks of the paper's experiments, their published weights, torchvision's and timm's.

`create_model` builds any of them by name, with what an explanation needs; `read_memory_bank` reads the labeled bank
that NPID classifies with.
"""

from captum_fam.models.bn_inception import BNInception
from captum_fam.models.checkpoints import Layout, load_weights, read_state_dict
from captum_fam.models.conv import Conv4Net, Conv64F
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.models.lemniscate import read_memory_bank
from captum_fam.models.registry import create_model, list_models
from captum_fam.models.resnet import ContrastiveResNet, ResNet18
from captum_fam.models.resnet12 import DecayingDropBlock, ResNet12
from captum_fam.models.torchvision_models import WeightsError
from captum_fam.models.wide_resnet import WideResNet

__all__ = [
    "BNInception",
    "ContrastiveResNet",
    "Conv4Net",
    "Conv64F",
    "DecayingDropBlock",
    "EmbeddingModel",
    "EmbeddingNet",
    "Layout",
    "ResNet12",
    "ResNet18",
    "WeightsError",
    "WideResNet",
    "create_model",
    "list_models",
    "load_weights",
    "read_memory_bank",
    "read_state_dict",
]
