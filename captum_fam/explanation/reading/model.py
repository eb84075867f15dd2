"""The model of an explanation, from a name, a module, a pair of modules, or an embedding model with its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from captum_fam.attr.tokens import TokenGridLike
from captum_fam.explanation.reading.arguments import stretch
from captum_fam.found_preprocessing import found_or_assumed
from captum_fam.images import tensor_to_image
from captum_fam.preprocessing import Preprocessing
from captum_fam.support import SimilarityToSupport

ModelLike = Any
"""A name, a module or function, a ``(trunk, embedder)`` pair, or an EmbeddingModel."""


class OwnTransform:
    """A transform of the user in the place of a :class:`~captum_fam.preprocessing.Preprocessing`.

    Args:
        transform: maps an RGB image of PIL to the input of the model, ``(C, H, W)``.

    Example:
        >>> from torchvision.transforms import ToTensor
        >>> OwnTransform(ToTensor()).view(Image.new("RGB", (30, 20))).size
        (30, 20)
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        """The input of the model, ``(C, H, W)``."""
        inputs = self.transform(image)
        if not isinstance(inputs, Tensor) or inputs.dim() != 3:
            shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"preprocess must give a tensor (C, H, W) for an image of PIL, got {shape}")
        return inputs

    def view(self, image: Image.Image) -> Image.Image:
        """What the model sees of an image: nothing is known of the transform but its result."""
        inputs = stretch(self(image)[None].float())[0]
        return tensor_to_image(inputs if len(inputs) == 3 else inputs.mean(0, keepdim=True))

    def describe(self) -> dict[str, Any]:
        """The transform as JSON can represent it."""
        return {"transform": repr(self.transform)}


PreprocessingLike = Preprocessing | OwnTransform


@dataclass
class ExplainedModel:
    """A model, with what is known about it.

    Attributes:
        forward_func: maps a batch of inputs to embeddings ``(B, J)``.
        name: name of the model, for the manifest.
        layer: dotted name of the layer to explain; None if it has to be found. Default: None.
        token_grid: layout of the tokens of the layer; None for feature maps, or if it has to be found. Default: None.
        similarity: name of the similarity of the model; None if it is not known. Default: None.
        notes: what the user has to know about the model, and has not been told yet. Default: nothing.
        told: what the user has been told already. Default: nothing.
        has_read_pictures: whether the preprocessing has been used. Default: False.
        length: length of the embedding, J; None before the model has run. Default: None.
        may_have_classifier: whether the user is still to be told of a classifier that gives the embedding. Default:
            False.
    """

    forward_func: Callable[..., Any]
    name: str
    layer: str | None = None
    token_grid: TokenGridLike | None = None
    similarity: str | None = None
    notes: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    has_read_pictures: bool = False
    length: int | None = None
    may_have_classifier: bool = False
    _preprocessing: PreprocessingLike | None = None

    def tell(self, notes: list[str]) -> None:
        """Add the notes that the user has not been told yet.

        Args:
            notes: the list to which warnings for the user are added.
        """
        from captum_fam.models.classifier import classifier_note

        if self.may_have_classifier:
            assert isinstance(self.forward_func, nn.Module)
            note = classifier_note(self.forward_func, self.length)
            self.notes += [] if note is None else [note]
            self.may_have_classifier = False
        notes += self.notes
        self.told, self.notes = [*self.told, *self.notes], []

    def preprocessing(self) -> PreprocessingLike:
        """What happens to a picture before the model sees it; a note is added if it had to be assumed."""
        if self._preprocessing is None:
            self._preprocessing, note = found_or_assumed(self.forward_func)
            self.notes += [] if note is None else [note]
        self.has_read_pictures = True
        return self._preprocessing

    def used_preprocessing(self) -> dict[str, Any] | None:
        """The preprocessing as JSON can represent it; None if there were no pictures, only inputs."""
        return self.preprocessing().describe() if self.has_read_pictures else None


def read_model(
    model: ModelLike, preprocess: PreprocessingLike | Callable[[Image.Image], Tensor] | None, output: Any
) -> ExplainedModel:
    """Read the model of an explanation.

    Args:
        model: a name of :func:`~captum_fam.models.create_model`, whose default weights are loaded; an
            :class:`~captum_fam.models.EmbeddingModel`; a module; a ``(trunk, embedder)`` pair or an ``InferenceModel``
            of pytorch-metric-learning; or a function.
        preprocess: the preprocessing of pictures; None for that of the model.
        output: which part of the output of the model is the embedding, as for create_model; None if it is known.

    Raises:
        TypeError: for something that is no model, or a preprocessing that cannot be called.
        ValueError: for an unknown name.
    """
    if isinstance(model, SimilarityToSupport):
        raise TypeError("model is a SimilarityToSupport, whose outputs are no embeddings; pass its model and support")
    read = _with_card(model, output) if _has_card(model) else _without_card(model, output)
    if preprocess is not None:
        if not callable(preprocess):
            raise TypeError(
                "preprocess must be a Preprocessing, or a function from an image of PIL to a tensor (C, H, W), got "
                f"{type(preprocess).__name__}"
            )
        read._preprocessing = (
            preprocess if isinstance(preprocess, Preprocessing | OwnTransform) else OwnTransform(preprocess)
        )
    return read


def _has_card(model: object) -> bool:
    """Whether a model is a name or an EmbeddingModel, with layer, preprocessing and similarity."""
    has_card = hasattr(model, "layer") and hasattr(model, "preprocessing") and not isinstance(model, nn.Module)
    return isinstance(model, str | Path) or has_card


def _with_card(model: ModelLike, output: Any) -> ExplainedModel:
    from captum_fam.models import create_model, default_weights

    notes = []
    if isinstance(model, str | Path):
        name = str(model)
        weights = default_weights(name)
        net = create_model(name, weights, output=output)
        if weights is None:
            notes = [
                f"model {name}: no trained weights are known, and maps of random ones explain nothing; pass "
                f"create_model({name!r}, weights=FILE), or register the model with pretrained=True if its factory "
                "gives trained weights"
            ]
    else:
        net = model if output is None else create_model(model, output=output)
    # create_model has warned of its notes.
    read = ExplainedModel(net.model, net.name, net.layer, net.token_grid, net.similarity, notes, list(net.notes))
    read._preprocessing = net.preprocessing
    return read


def _without_card(model: ModelLike, output: Any) -> ExplainedModel:
    from captum_fam.models.outputs import EmbeddingOutput
    from captum_fam.models.own_models import as_module, check_takes_images

    # A function has no modules to look into; a pair is no function, and a class makes a model but is none.
    is_function = callable(model) and not hasattr(model, "trunk") and not isinstance(model, type)
    module = model if is_function else as_module(model)
    name = type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
    if isinstance(module, nn.Module):
        check_takes_images(module)
    if output is not None:
        module = EmbeddingOutput(as_module(module), output)
    return ExplainedModel(module, name, may_have_classifier=isinstance(module, nn.Module) and output is None)
