"""Embedding models: a registry of them by name, their weights, and what an explanation needs to know of them.

`create_model` builds a registered network, one of torchvision's or one of timm's; `register_model` adds one of your
own; `read_memory_bank` reads the labeled bank that NPID classifies with.
"""

from captum_fam.models.checkpoints import Layout, WeightsError, load_weights, read_state_dict
from captum_fam.models.conv import Conv4Net
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.models.lemniscate import read_memory_bank
from captum_fam.models.registry import create_model, default_weights, list_models, register_model

__all__ = [
    "Conv4Net",
    "EmbeddingModel",
    "EmbeddingNet",
    "Layout",
    "WeightsError",
    "create_model",
    "default_weights",
    "list_models",
    "load_weights",
    "read_memory_bank",
    "read_state_dict",
    "register_model",
]
