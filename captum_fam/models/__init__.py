"""Embedding models by name, with their weights and with everything that an explanation needs to know about a model.

`create_model` builds a registered network, a network of torchvision or a network of timm. `register_model` adds a
network of your own. `read_memory_bank` reads the labeled memory bank that NPID classifies with.
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
