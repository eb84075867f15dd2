"""Image towers of the models of open_clip as embedding models."""

from __future__ import annotations

import difflib
import logging
import urllib.error
from pathlib import Path
from typing import Any

from captum_fam._files import need
from captum_fam._text import first_line
from captum_fam.found_preprocessing import preprocessing_of
from captum_fam.models.checkpoints import OWN_LAYOUT, Layout, load_weights
from captum_fam.models.downloads import GIVE_A_FILE, check_reachable, hub
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import NO_SETTINGS, ModelSettings
from captum_fam.models.own_models import attributes_of, measure
from captum_fam.models.weights_file import WeightsError, is_there, weights_in_words

_HUB_PREFIX = "hf-hub:"
_LAYOUTS = (Layout("open_clip", part="visual."), OWN_LAYOUT)
_REMEDY = f"{GIVE_A_FILE}, or load the model once with a network and copy the cache"


def open_clip_names() -> list[str]:
    """All models of the installed open_clip.

    Returns:
        Names such as ``ViT-B-32``, in alphabetical order.

    Raises:
        ImportError: if open_clip is not installed.
    """
    return sorted(_import_open_clip().list_models())


def default_open_clip_weights(name: str) -> str | None:
    """The weights of a model by default.

    Args:
        name: as for :func:`load_open_clip`.

    Returns:
        ``"DEFAULT"``; None for a model without pretrained weights.

    Raises:
        ImportError: if open_clip is not installed.

    Example:
        >>> default_open_clip_weights("ViT-B-32")
        'DEFAULT'
    """
    return "DEFAULT" if name.startswith(_HUB_PREFIX) or _tags(name) else None


def load_open_clip(
    name: str, weights: str | Path | None = None, settings: ModelSettings = NO_SETTINGS
) -> EmbeddingModel:
    """Build the image tower of a model of open_clip.

    Args:
        name: name as in ``open_clip.list_models()``, such as ``ViT-B-32``; or ``hf-hub:NAME`` for a model on the hub.
        weights: tag of pretrained weights, such as ``"openai"``; ``"DEFAULT"`` for the first tag that open_clip lists;
            the path of a file with the state dict of the model or of its image tower; None for random weights.
            Default: None.
        settings: settings of the user. The tower is made for the ``size`` that is set. Default: none.

    Returns:
        The image tower in eval mode.

    Raises:
        ImportError: if open_clip is not installed.
        ValueError: for an unknown name or tag, or settings that do not fit.
        WeightsError: (a ``ValueError``) if the weights cannot be downloaded or read, or belong to another model.

    Example:
        >>> load_open_clip("ViT-B-32", "openai").preprocessing.mean
        (0.48145466, 0.4578275, 0.40821073)
    """
    open_clip, full = _import_open_clip(), f"open_clip/{name}"
    settings.refuse_output(full)
    is_on_hub, tags = name.startswith(_HUB_PREFIX), _tags(name)
    if not is_on_hub and name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models())
        hint = f"did you mean {' or '.join(close)}?" if close else 'list_models("open_clip") lists them'
        raise ValueError(f"model {name!r} is no model of open_clip; {hint}")
    tag = None
    if weights == "DEFAULT" and not is_on_hub:
        if not tags:
            raise WeightsError(f"weights: open_clip has none for {name}; {GIVE_A_FILE}")
        tag = tags[0]
    elif weights in tags:
        tag = str(weights)
    elif weights not in (None, "DEFAULT") and not is_there(weights):
        known = ", ".join(tags[:8]) or "none"
        raise WeightsError(f"{weights_in_words(weights)}: neither a file nor a tag of {name}, whose tags are {known}")
    model = _make(name, full, tag, is_on_hub, weights == "DEFAULT", settings)
    tower = model.visual
    layout = None
    if weights is not None and weights != "DEFAULT" and tag is None:
        layout = load_weights(tower, weights, _LAYOUTS)
    found, _ = preprocessing_of(tower)
    draft = EmbeddingModel(
        full,
        tower.eval(),
        "",
        any_size=False,
        layout=None if layout is None else layout.name,
        **attributes_of(found),
    )
    return measure(settings.applied_to(draft), settings)


def _make(name: str, full: str, tag: str | None, is_on_hub: bool, trained: bool, settings: ModelSettings) -> Any:
    """The whole model, with its text tower."""
    open_clip = _import_open_clip()
    config = {} if tag is None else open_clip.get_pretrained_cfg(name, tag)
    arguments = {
        "pretrained": tag,
        "load_weights": trained or tag is not None,
        "pretrained_text": False,  # the text tower is not used
        "force_image_size": settings.size,
        "force_quick_gelu": config.get("quick_gelu", False),  # as the weights were trained
    }
    is_from_url = bool(config.get("url")) and not config.get("hf_hub")
    if is_from_url and not (Path.home() / ".cache" / "clip" / Path(config["url"]).name).exists():
        check_reachable(config["url"], f"the weights of {full} from {config['url']}", _REMEDY)
    level_before = logging.root.manager.disable
    # open_clip logs random weights, which are no error here, and downloads that failed, which are exceptions here.
    logging.disable(logging.ERROR)
    try:
        if is_on_hub or (tag is not None and not is_from_url):
            with hub(full, _REMEDY):
                return open_clip.create_model(name, **arguments)
        return open_clip.create_model(name, **arguments)
    except TypeError as error:
        if settings.size is None:
            raise
        raise ValueError(f"size={settings.size}: {full} cannot be made for this size ({first_line(error)})") from error
    except urllib.error.URLError as error:
        raise WeightsError(f"cannot download the weights of {full} ({first_line(error)}); {_REMEDY}") from error
    finally:
        logging.disable(level_before)


def _tags(name: str) -> list[str]:
    tags: list[str] = _import_open_clip().list_pretrained_tags_by_model(name)
    return tags


def _import_open_clip() -> Any:
    return need("open_clip", extra="open-clip", purpose="a model of open_clip")
