"""Vision models of transformers as embedding models: from the Hugging Face hub, from a folder, or by model type.

The embedding is the output of a trained projection or pooling: ``image_embeds`` of CLIP, ``pooler_output`` of DINOv2,
SigLIP, Swin, ConvNeXt and ResNet. The pooling of ViT and DeiT is published without trained weights; here their
embedding is the class token after the last normalization.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam._files import need
from captum_fam._text import first_line
from captum_fam.found_preprocessing import config_preprocessing
from captum_fam.models.checkpoints import load_weights
from captum_fam.models.downloads import hub
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.hf_preprocessing import read_preprocessing
from captum_fam.models.model_settings import NO_SETTINGS, ModelSettings
from captum_fam.models.outputs import EmbeddingOutput
from captum_fam.models.own_models import attributes_of, measure
from captum_fam.models.weights_file import WeightsError

_REMEDY = (
    "give a folder of the model (hf/FOLDER), or load the model once with a network and copy the cache of Hugging Face "
    "(HF_HOME)"
)
_CLASS_TOKEN = ("vit", "deit")
_ANY_SIZE = ("dinov", "convnext", "resnet", "regnet")


def hf_names() -> list[str]:
    """The model types of the installed transformers that take images.

    Returns:
        Types such as ``dinov2``, in alphabetical order.

    Raises:
        ImportError: if transformers is not installed.
    """
    need("transformers", extra="hf", purpose="a model of transformers")
    images = need("transformers.models.auto.image_processing_auto", extra="hf", purpose="a model of transformers")
    return sorted(set(images.IMAGE_PROCESSOR_MAPPING_NAMES) & set(_types()))


def default_hf_weights(name: str) -> str | None:
    """The weights of a model by default.

    Args:
        name: name on the hub, folder or model type.

    Returns:
        ``"DEFAULT"``; None for a model type, and for a folder without weights.

    Raises:
        ImportError: if transformers is not installed.

    Example:
        >>> default_hf_weights("facebook/dinov2-base"), default_hf_weights("dinov2")
        ('DEFAULT', None)
    """
    if Path(name).is_dir():
        return "DEFAULT" if any(any(Path(name).glob(pattern)) for pattern in ("*.safetensors", "*.bin")) else None
    return None if "/" not in name and name in _types() else "DEFAULT"


def load_hf(name: str, weights: str | Path | None = None, settings: ModelSettings = NO_SETTINGS) -> EmbeddingModel:
    """Build a vision model of transformers. No code of the hub is run.

    Args:
        name: name on the hub, such as ``facebook/dinov2-small``; a folder with ``config.json``; or a model type of
            transformers, such as ``dinov2``, for its default architecture.
        weights: ``"DEFAULT"`` for the weights of the hub or the folder; the path of a file with a state dict; None for
            random weights. Default: None.
        settings: settings of the user. Default: none.

    Returns:
        The model in eval mode. The network of transformers is the part ``model`` of ``EmbeddingModel.model``.

    Raises:
        ImportError: if transformers is not installed.
        ValueError: for an unknown name, a model that takes no images, settings that do not fit, or a model whose output
            holds no embedding; the message lists the fields of the output.
        WeightsError: (a ``ValueError``) if the weights cannot be downloaded, or if parameters of the embedding are
            missing.

    Example:
        >>> load_hf("facebook/dinov2-small", "DEFAULT").preprocessing.size
        224
    """
    need("transformers", extra="hf", purpose="a model of transformers")
    is_folder, full = Path(name).is_dir(), f"hf/{name}"
    is_type = not is_folder and name in _types()
    if not is_folder and not is_type and "/" not in name and (close := difflib.get_close_matches(name, _types())):
        raise ValueError(
            f"model {full!r} is unknown; did you mean hf/{' or hf/'.join(close)}? Names on the hub are "
            "hf/ORGANIZATION/NAME"
        )
    if is_type and weights == "DEFAULT":
        raise WeightsError(
            f"weights: {full} is a type of models, without weights; name a model on the hub or a folder, or take "
            "weights=None (--weights none) for random ones"
        )
    if is_folder:
        config, preprocessing, model = _from_hub(name, full, weights == "DEFAULT", True, settings)
    elif is_type:
        config = need("transformers", extra="hf", purpose=full).CONFIG_MAPPING[name]()
        preprocessing, model = None, _random(config, full)
    else:
        with hub(full, _REMEDY) as is_online:
            config, preprocessing, model = _from_hub(name, full, weights == "DEFAULT", not is_online, settings)
    layout = None if weights in (None, "DEFAULT") else load_weights(model, weights)
    preprocessing = preprocessing or attributes_of(config_preprocessing(config))
    has_interpolation = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", None) or config
    draft = EmbeddingModel(
        full,
        EmbeddingOutput(
            model.eval(),
            class_token if config.model_type in _CLASS_TOKEN and settings.output is None else settings.output,
            {"interpolate_pos_encoding": True} if has_interpolation else None,
        ).eval(),
        "",
        any_size=has_interpolation or config.model_type.startswith(_ANY_SIZE) or not hasattr(vision, "image_size"),
        layout=None if layout is None else layout.name,
        **preprocessing,
    )
    # In a ConvNeXt a normalization follows the average.
    heads = [None, model.layernorm] if config.model_type.startswith("convnext") else ()
    return measure(settings.without_output().applied_to(draft), settings.without_output(), heads)


def class_token(output: Any) -> Tensor:
    """The class token in the output of a ViT, after the last normalization.

    Args:
        output: output object with the field ``last_hidden_state``, ``(B, T, J)``.

    Returns:
        The first token, ``(B, J)``.

    Example:
        >>> from types import SimpleNamespace
        >>> class_token(SimpleNamespace(last_hidden_state=torch.rand(2, 17, 32))).shape
        torch.Size([2, 32])
    """
    token: Tensor = output.last_hidden_state[:, 0]
    return token


def _types() -> list[str]:
    return list(need("transformers", extra="hf", purpose="a model of transformers").CONFIG_MAPPING)


def _from_hub(
    source: str, name: str, trained: bool, is_local: bool, settings: ModelSettings
) -> tuple[Any, dict[str, Any] | None, Any]:
    """Configuration, preprocessing (None if no file has it) and network of a folder or of a name on the hub."""
    transformers = need("transformers", extra="hf", purpose=name)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"model {name!r}: the folder has no config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=is_local)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {first_line(error)}") from error
    except OSError as error:
        if not Path(source).is_dir():
            raise
        raise ValueError(f"model {name!r}: its config.json cannot be read ({first_line(error)})") from error
    preprocessing = read_preprocessing(source, is_local)
    if not trained:
        return config, preprocessing, _random(config, name)
    kind, arguments = _class_of(config, name)
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    try:
        # The report of transformers lists the weights of the other tower and of the classifier, which are not needed.
        # What is missing is an error below.
        logging.set_verbosity_error()
        model, info = kind.from_pretrained(
            source,
            dtype=torch.float32,
            local_files_only=is_local,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
            **arguments,
        )
    except OSError as error:
        if not Path(source).is_dir():
            raise
        raise WeightsError(
            f"weights: {name} has none that can be read ({first_line(error)}); weights=None (--weights "
            "none) makes random ones"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(set(info["missing_keys"]) & dict(model.named_parameters()).keys())
    if settings.output is not None:  # the pooling may be untrained where another output is taken
        missing = [key for key in missing if "pooler" not in key]
    if missing:
        raise WeightsError(
            f"weights: {name} has no weights for {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}, "
            f"which {type(model).__name__} needs; if a pooling is missing, take another output with output= (--output "
            "FIELD)"
        )
    return config, preprocessing, model


def _random(config: Any, name: str) -> Any:
    """The network with random weights."""
    kind, arguments = _class_of(config, name)
    vision = getattr(config, "vision_config", None)
    return kind(vision if vision is not None else config, **arguments)


def _class_of(config: Any, name: str) -> tuple[Any, dict[str, bool]]:
    """The class of the network that embeds images, and its arguments."""
    transformers = need("transformers", extra="hf", purpose=name)
    kind, saved_class = config.model_type, (getattr(config, "architectures", None) or [""])[0]
    found = None
    if getattr(config, "vision_config", None) is not None:
        family = type(config).__name__.removesuffix("Config")
        classes = (f"{family}VisionModelWithProjection", f"{family}VisionModel")
        found = next((getattr(transformers, each) for each in classes if hasattr(transformers, each)), None)
    elif kind == "clip_vision_model" and saved_class != "CLIPVisionModel":
        found = transformers.CLIPVisionModelWithProjection
    elif type(config) in transformers.MODEL_MAPPING:
        found = transformers.MODEL_MAPPING[type(config)]
    if found is None or found.main_input_name != "pixel_values":
        raise ValueError(
            f"model {name!r}: {kind} is no model that embeds images on its own; write a factory that returns a module "
            "from images to embeddings, and name it FILE.py:FACTORY"
        )
    return found, {"add_pooling_layer": False} if kind in _CLASS_TOKEN else {}
