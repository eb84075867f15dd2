"""Embedding models by name, with their weights and with everything that an explanation needs to know about a model.

`create_model` builds a model of torchvision, timm, transformers or open_clip, a registered network, or a model of your
own. `register_model` adds a name. `read_memory_bank` reads the labeled memory bank that NPID classifies with.
"""

from captum_fam.found_preprocessing import preprocessing_of
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.classifier import classifier_note
from captum_fam.models.conv import Conv4Net
from captum_fam.models.creation import create_model, default_weights, has_factory_weights, list_models
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.models.lemniscate import read_memory_bank
from captum_fam.models.registry import register_model
from captum_fam.models.state_dicts import read_state_dict
from captum_fam.models.weights_file import WeightsError

__all__ = [
    "Conv4Net",
    "EmbeddingModel",
    "EmbeddingNet",
    "Layout",
    "WeightsError",
    "classifier_note",
    "create_model",
    "default_weights",
    "has_factory_weights",
    "list_models",
    "load_weights",
    "preprocessing_of",
    "read_memory_bank",
    "read_state_dict",
    "register_model",
]
