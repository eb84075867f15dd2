"""What LayerFAM and LayerSimilarityCAM share: from inputs and support to the weight of every support."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _select_targets,
)
from captum._utils.typing import TargetType
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._training_mode import warn_of_training_mode
from captum_fam.attr._layer_run import LayerRun, run_layers
from captum_fam.attr.tokens import TokenGrid, TokenGridLike, looks_channels_first, looks_channels_last
from captum_fam.attr.views import Views
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support.memory_bank import BankSupport, MemoryBank
from captum_fam.support.support_set import (
    WRAP_THE_MODEL,
    EmbeddedSupport,
    SimilarityToSupport,
    SupportSet,
    as_support_set,
    check_embedding_sizes,
    check_finite,
    check_support_tensor,
    embed_classes,
    embed_images,
    plain_arithmetic,
)

_PACKAGES = ("captum", "captum_fam")

Maps = Tensor | tuple[Tensor, ...] | list[Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Comparison:
    """A batch of queries compared with its support.

    Attributes:
        query: the embeddings Z', ``(B, J)``, float32 at least.
        support: the supports' embeddings in the same precision, or the rows of a bank, which are gathered for one query
            after another.
        explained: what the measure's contributions sum to for each support, ``(B, K)``.
        similarities: to each support, ``(B, K)``. For a distance these are less than ``explained``, by the similarity
            of the zero vector.
        support_weights: the weight of each support in the explained score, ``(B, K)``.
        scores: of every class, less its foil, ``(B, C)``; of a bank the share of the votes.
        predicted: the class of the largest score before the foil, ``(B,)``.
        target: the explained class, ``(B,)``.
        class_names: C names.
    """

    query: Tensor
    support: Tensor | BankSupport
    explained: Tensor
    similarities: Tensor
    support_weights: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    class_names: tuple[str, ...]

    @property
    def score(self) -> Tensor:
        """The weighted sum of the similarities, ``(B,)``: the score of the target class, less its foil."""
        return (self.support_weights * self.similarities).sum(1)

    @property
    def explained_score(self) -> Tensor:
        """The part of :attr:`score` that the features of the embedding add, ``(B,)``.

        That is all of it, but for a distance, which starts from the score of the zero vector.
        """
        return (self.support_weights * self.explained).sum(1)

    def over_supports(self, measure: Callable[..., Tensor], weights: Tensor) -> Tensor:
        """``measure(query, support, weights)``, ``(B, J)``, for weights ``(B, K)`` of the supports."""
        if isinstance(self.support, Tensor) and self.support.dim() == 2:
            used = weights.any(0)
            # Supports of classes that nobody asks about have no part in it.
            if 0 < 2 * used.count_nonzero() <= len(used):
                return measure(self.query, self.support[used], weights[:, used])
        return _over_supports(measure, self.query, self.support, weights)


class SimilarityLayerAttribution(LayerAttribution):
    """Base of the layer methods that explain a similarity.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        similarity: the measure the model decides with.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        token_grid: TokenGridLike | None = None,
    ) -> None:
        if isinstance(forward_func, nn.DataParallel) and isinstance(forward_func.module, SimilarityToSupport):
            raise TypeError(f"forward_func: {WRAP_THE_MODEL}")
        if not isinstance(layer, nn.Module | str) and not len(layer):
            raise ValueError("layer is an empty list; pass at least one module or name")
        owner = forward_func.model if isinstance(forward_func, SimilarityToSupport) else forward_func
        resolved = (
            resolve_layer(owner, layer)
            if isinstance(layer, nn.Module | str)
            else [resolve_layer(owner, one) for one in layer]
        )
        LayerAttribution.__init__(self, forward_func, resolved, device_ids)
        if isinstance(forward_func, SimilarityToSupport):
            if similarity != "cosine":
                raise ValueError("similarity is set by the SimilarityToSupport; give it there")
            self.similarity: Similarity = forward_func.similarity
        else:
            self.similarity = get_similarity(similarity)
        self.token_grid = token_grid

    @property
    def _model(self) -> Callable[..., Any]:
        func: Callable[..., Any] = self.forward_func
        return func.model if isinstance(func, SimilarityToSupport) else func

    @property
    def _layers(self) -> list[nn.Module]:
        layers = [self.layer] if isinstance(self.layer, nn.Module | str) else self.layer
        return [resolve_layer(self._model, layer) for layer in layers]

    def require_target(
        self, inputs: object = None, support: object = None, target: TargetType = None, *args: object, **kwargs: object
    ) -> None:
        """Refuse repeated inputs of :meth:`attribute` without a target, where there are several classes.

        Copies without noise have the class of the clean input, and need no target.

        Raises:
            ValueError: for these.
        """
        given = self.forward_func.support if isinstance(self.forward_func, SimilarityToSupport) else support
        n_classes = given.n_classes if isinstance(given, SupportSet | MemoryBank) else 1
        if target is not None or n_classes == 1:
            return
        tensors = _format_tensor_into_tuples(inputs)
        same = torch.stack([(one[1:] == one[:-1]).flatten(1).all(1) for one in tensors]).all(0)
        if same.any():
            return
        raise ValueError(
            "target is None, and the inputs are repeated with noise: each copy would be explained for the class of "
            f"{n_classes} that it is predicted as. Pass that of the clean inputs, target=scores(inputs).argmax(1)"
        )

    def _compare(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: object,
        target: TargetType,
        additional_forward_args: object,
        attribute_to_layer_input: bool,
        **tape: Any,
    ) -> tuple[LayerRun, Comparison]:
        """Run the model once and weigh the supports; activations come out as ``(B, N, *spatial)``."""
        formatted = _format_tensor_into_tuples(inputs)
        args = _format_additional_forward_args(additional_forward_args)
        if formatted[0].numel() == 0:
            raise ValueError(f"inputs is an empty batch, shape {tuple(formatted[0].shape)}")
        warn_of_training_mode(self._model, outside() + 1)
        embedded, class_names = self._embed_support(support, formatted, args)
        run = run_layers(self._model, formatted, self._layers, args, attribute_to_layer_input, self.device_ids, **tape)
        self._check_batch_first(run, formatted, args, attribute_to_layer_input)
        self._warn_of_square_grid(run, formatted[0])
        if not run.embedding.isfinite().all():
            raise ValueError("inputs: the embedding of the query contains NaN or inf")
        check_embedding_sizes(run.embedding, embedded.embeddings)
        if isinstance(embedded, MemoryBank):
            return run, self._compare_with_bank(run.embedding, embedded, target)
        _check_batch(embedded.embeddings, len(run.embedding))
        with plain_arithmetic(run.embedding.device):
            query, vectors = F.common_precision(run.embedding, embedded.embeddings)
            similarities = self.similarity.score(query, vectors)
            if not similarities.isfinite().all():
                raise ValueError("support: its similarity to the query is NaN or inf")
            # Most measures explain their whole score; no need to compute it twice.
            by_score = type(self.similarity).explained is Similarity.explained
            magnitude = self.similarity.magnitude(query, vectors, similarities)
            scores = embedded.scores(similarities, magnitude)
            predicted = embedded.predicted(similarities, magnitude)
            chosen = _select_class(scores, target, predicted)
            comparison = Comparison(
                query=query,
                support=vectors,
                explained=similarities if by_score else self.similarity.explained(query, vectors),
                similarities=similarities,
                support_weights=embedded.support_weights(similarities, chosen, magnitude),
                scores=scores,
                predicted=predicted,
                target=chosen,
                class_names=class_names,
            )
        return run, comparison

    def _compare_with_bank(self, embedding: Tensor, bank: MemoryBank, target: TargetType) -> Comparison:
        """Which rows of a bank are the supports depends on the query."""
        with plain_arithmetic(embedding.device):
            query, _ = F.common_precision(embedding, bank.embeddings[:1])
            vote = bank.classify(query)
            chosen = _select_class(vote.class_scores, target, vote.predicted)
            support = bank.support(query, chosen, vote)
            explained = _over_supports(self.similarity.explained, query, support)
            by_score = type(self.similarity).explained is Similarity.explained
            return Comparison(
                query=query,
                support=support,
                explained=explained,
                similarities=explained if by_score else _over_supports(self.similarity.score, query, support),
                support_weights=support.weights,
                scores=vote.class_scores,
                predicted=vote.predicted,
                target=chosen,
                class_names=bank.class_names,
            )

    def _embed_support(
        self, support: object, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None
    ) -> tuple[EmbeddedSupport | MemoryBank, tuple[str, ...]]:
        if isinstance(self.forward_func, SimilarityToSupport):
            if support is not None:
                raise ValueError(
                    "support is set by the SimilarityToSupport; leave it out here, or explain the model itself"
                )
            return self.forward_func.embedded(), self.forward_func.class_names
        if support is None:
            raise ValueError(
                "support is missing: pass images or embeddings to compare with, a SupportSet or a MemoryBank"
            )
        if isinstance(support, MemoryBank):
            if type(support.similarity) is not type(self.similarity):
                raise ValueError(
                    f"support finds its neighbors by {support.similarity} but the map explains {self.similarity}; "
                    "give the memory bank and the method the same similarity"
                )
            return support, support.class_names
        if isinstance(support, SupportSet):
            self._check_images(support.inputs, inputs, args, support.holds_embeddings)
            return EmbeddedSupport(
                *embed_classes(support, self._model, additional_forward_args=args)
            ), support.class_names
        check_support_tensor(support)
        assert isinstance(support, Tensor)
        support = support.detach()
        rank = inputs[0].dim()
        if support.dim() == rank - 1 > 2 and support.shape[1:] == inputs[0].shape[2:]:
            raise ValueError(
                f"support has shape {tuple(support.shape)}, one image without its batch dimension; pass support[None]"
            )
        if support.shape[1:] == inputs[0].shape and len(support) != len(inputs[0]):
            raise ValueError(_no_batch_dimension(inputs[0], support))
        if support.dim() == rank + 1:
            self._check_images(support.flatten(0, 1), inputs, args)
            _check_batch(support, len(inputs[0]))
            flat = check_finite(self._embed_per_query(support, inputs, args))
            embeddings = flat.unflatten(0, support.shape[:2])
        elif support.dim() == rank and support.dim() > 2 and (rank > 3 or support.shape[1:] == inputs[0].shape[1:]):
            return self._embed_support(as_support_set(support), inputs, args)
        elif support.dim() in (2, 3):
            embeddings = support
        else:
            raise ValueError(
                f"support has shape {tuple(support.shape)}; for inputs of shape {tuple(inputs[0].shape)} it must be "
                "images (K, ...), images per query (B, K, ...), embeddings (K, J) or embeddings per query (B, K, J)"
            )
        count = embeddings.shape[-2]
        return EmbeddedSupport(embeddings, F.widen(embeddings).new_full((1, count), 1 / count)), ("support",)

    def _embed_per_query(self, support: Tensor, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> Tensor:
        try:
            return embed_images(self._model, support.flatten(0, 1), args)
        except RuntimeError as error:
            if support.shape[1:] != inputs[0].shape:
                raise
            # A convolution takes a single image too, and as many channels as supports look like a set per query.
            raise ValueError(_no_batch_dimension(inputs[0], support)) from error

    def _check_images(
        self, images: Tensor, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None, embedded: bool = False
    ) -> None:
        if embedded:
            return
        if images.device != inputs[0].device:
            raise ValueError(f"support is on {images.device} but inputs on {inputs[0].device}; move one of them")
        if images.shape[1:] == inputs[0].shape:
            raise ValueError(_no_batch_dimension(inputs[0], images))
        if images.dim() != inputs[0].dim() or images.shape[1] != inputs[0].shape[1]:
            raise ValueError(
                f"support has images of shape {tuple(images.shape[1:])} but inputs of {tuple(inputs[0].shape[1:])}; "
                "both go through the same model"
            )
        if len(inputs) > 1 or any(isinstance(arg, Tensor) for arg in args or ()):
            raise ValueError(
                "support: images cannot be embedded by a model that takes several tensors; pass their embeddings"
            )

    def _check_batch_first(
        self, run: LayerRun, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None, at_input: bool
    ) -> None:
        """Refuse tokens whose first dimension is not the batch, where the sizes cannot tell the two apart."""
        batch = len(run.embedding)
        for layer, passes in zip(self._layers, run.passes, strict=True):
            square = any(t.dim() == 3 and t.shape[:2] == (batch, batch) for one in passes for t in one.tensors)
            knows = self.token_grid is not None and not isinstance(self.token_grid, TokenGrid)
            if not square or batch == 1 or knows or getattr(self.token_grid, "sequence_first", False):
                continue
            alone = run_layers(self._model, tuple(x[:1] for x in inputs), [layer], args, at_input, self.device_ids)
            if any(len(tensor) != 1 for one in alone.passes[0] for tensor in one.tensors):
                raise ValueError(
                    f"layer {type(layer).__name__} gives ({batch}, {batch}, ...) with the tokens first; rearrange it: "
                    "token_grid=TokenGrid(sequence_first=True)"
                )

    def _warn_of_square_grid(self, run: LayerRun, inputs: Tensor) -> None:
        """A grid without a size is square, which tokens of an image that is not are unlikely to be."""
        grid = self.token_grid
        if not isinstance(grid, TokenGrid) or grid.size is not None or inputs.dim() != 4:
            return
        is_square = inputs.shape[2] == inputs.shape[3]
        if not is_square and any(t.dim() == 3 for passes in run.passes for one in passes for t in one.tensors):
            height, width = inputs.shape[2:]
            warnings.warn(
                f"token_grid lays the tokens out as a square, but inputs are {height} x {width}: unless the model "
                "makes them square itself, pass TokenGrid(size=(h, w)), or find_layer(model, inputs).token_grid",
                stacklevel=outside(),
            )

    def _activations(self, run: LayerRun) -> list[tuple[Tensor, ...]]:
        """The layers' tensors as ``(B, N, *spatial)``; of several views of the input their mean, laid back."""
        activations = []
        for passes in self._passes(run):
            laid_back = [
                tuple(self._lay_back(tensor, view) for tensor in tensors) if view is not None else tensors
                for view, tensors in passes
            ]
            count = len(laid_back)
            activations.append(
                laid_back[0] if count == 1 else tuple(sum(each) / count for each in zip(*laid_back, strict=True))
            )
        return activations

    def _passes(self, run: LayerRun) -> list[list[tuple[int | None, tuple[Tensor, ...]]]]:
        """For each layer and each view of the input: the number of the view and the tensors as ``(B, N, *spatial)``."""
        of_views = isinstance(self._model, Views)
        return [
            [
                (one.view if of_views else None, tuple(self._grid(layer, t, run.embedding) for t in one.tensors))
                for one in passes
            ]
            for layer, passes in zip(self._layers, run.passes, strict=True)
        ]

    def _lay_back(self, maps: Tensor, view: int | None) -> Tensor:
        """Maps of a view, in the place of the image itself."""
        return maps if view is None or not isinstance(self._model, Views) else self._model.lay_back(maps, view)

    def _grid(self, layer: nn.Module, tensor: Tensor, embedding: Tensor) -> Tensor:
        name, shape = type(layer).__name__, tuple(tensor.shape)
        if not tensor.is_floating_point():
            raise ValueError(f"layer {name} gives {tensor.dtype}; an activation map needs floating-point numbers")
        scopes = [layer, self._model]
        is_last = tensor.dim() > 2 and looks_channels_last(scopes, tensor, embedding.shape[1])
        if isinstance(self.token_grid, TokenGrid) and tensor.dim() == 4 and looks_channels_first(scopes, tensor):
            raise ValueError(
                f"layer {name} gives {shape}, which looks channels-first already; leave token_grid out for this layer"
            )
        if self.token_grid is not None:
            tensor = self.token_grid(tensor)
        elif is_last:
            raise ValueError(
                f"layer {name} gives {shape}, which looks channels-last; pass "
                "token_grid=TokenGrid(...) to lay the tokens out as an image, or token_grid=torch.nn.Identity() if "
                "dimension 1 does hold the channels"
            )
        if tensor.dim() < 3:
            raise ValueError(
                f"layer {name} gives {shape}, which has no spatial dimension; choose a layer before the pooling"
            )
        if len(tensor) != len(embedding):
            raise ValueError(
                f"layer {name} gives {shape}, a batch of {len(tensor)} for {len(embedding)} queries: its tokens may "
                "come first (token_grid=TokenGrid(sequence_first=True)), or it may hold windows or frames: rearrange "
                "it with a token_grid of your own, or choose another layer"
            )
        return tensor

    def _format(self, maps: list[tuple[Tensor, ...]], relu_attributions: bool) -> Maps:
        for tensors in maps:
            for one in tensors:
                if not one.isfinite().all():
                    raise ValueError("layer: its activation contains NaN or inf")
        if relu_attributions:
            maps = [tuple(one.relu() for one in tensors) for tensors in maps]
        outputs: list[Any] = [_format_output(len(tensors) > 1, tensors) for tensors in maps]
        return outputs[0] if isinstance(self.layer, nn.Module | str) else outputs


def _no_batch_dimension(inputs: Tensor, images: Tensor) -> str:
    return (
        f"inputs has shape {tuple(inputs.shape)} and the support {tuple(images.shape)}: one query without its batch "
        "dimension; pass inputs[None]"
    )


def _over_supports(
    measure: Callable[..., Tensor], query: Tensor, support: Tensor | BankSupport, *weights: Tensor
) -> Tensor:
    """``measure(query, support, *weights)``; with a bank the rows of one query at a time are in memory."""
    if isinstance(support, Tensor):
        return measure(query, support, *weights)
    each = zip(query.split(1), support, *(tensor.split(1) for tensor in weights), strict=True)
    return torch.cat([measure(one, rows.to(one.dtype), *own) for one, rows, *own in each])


def outside() -> int:
    """How far up the stack the code stands that called into Captum or this package: where a warning points."""
    level, frame = 1, inspect.currentframe()
    while (frame := frame and frame.f_back) and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level += 1
    return level


def resolve_layer(owner: Callable[..., Any], layer: nn.Module | str) -> nn.Module:
    """The module of that name.

    Raises:
        ValueError: for a name that the model does not have, or where hooks do not run: scripted and traced modules.
        TypeError: for a layer that is neither a module nor a name, or a name without a module to look it up in.
    """
    if isinstance(owner, torch.jit.ScriptModule) or isinstance(layer, torch.jit.ScriptModule):
        where = "forward_func" if isinstance(owner, torch.jit.ScriptModule) else "layer"
        raise ValueError(
            f"{where} is a scripted or traced module, in which no hook runs; pass the eager model that it was made from"
        )
    if isinstance(owner, torch.export.ExportedProgram):
        raise ValueError("forward_func is an exported program, in which no hook runs; pass the eager model")
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a module or its dotted name, got {type(layer).__name__}")
    if not isinstance(owner, nn.Module):
        raise TypeError(f"layer {layer!r} is a name, but forward_func is no module to look it up in; pass the module")
    try:
        return owner.get_submodule(layer)
    except AttributeError as error:
        children = ", ".join(name for name, _ in owner.named_children())
        raise ValueError(
            f"layer {layer!r} is no submodule of {type(owner).__name__}; its children are {children}"
        ) from error


def _select_class(scores: Tensor, target: TargetType, predicted: Tensor) -> Tensor:
    """The class that Captum's rules for ``target`` select for each sample, ``(B,)``; the predicted one for None."""
    if target is None:
        return predicted
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    # Captum only asserts this, which `python -O` leaves out.
    if isinstance(target, list) and len(target) != len(scores):
        raise AssertionError(f"target is a list of {len(target)} for a batch of {len(scores)}")
    try:
        selected = _select_targets(columns, target)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(f"target {target!r} is out of range for {scores.shape[1]} classes") from error
    if selected.shape != predicted.shape:
        raise AssertionError(f"target {target!r} does not select one class for each of {len(predicted)} samples")
    return selected


def _check_batch(support: Tensor, batch: int) -> None:
    if support.dim() > 2 and len(support) != batch:
        raise ValueError(
            f"support holds one set for each of {len(support)} queries but inputs is a batch of {batch}; "
            "methods that repeat the inputs (NoiseTunnel) need a support shared by the batch"
        )
