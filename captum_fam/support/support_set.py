"""The support side of a similarity: images or embeddings, their classes, and scores against them."""

from __future__ import annotations

import json
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from captum._utils.common import _run_forward
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._model_state import anchor, model_state, tensor_version
from captum_fam._training_mode import warn_of_training_mode
from captum_fam.similarity import Dot, SimilarityLike, get_similarity

Aggregate = Literal["mean", "prototype"]


class SupportSet(nn.Module):
    """Labeled support images or embeddings.

    Images are embedded with the model that explains, once for each state of its weights: after a training
    step or ``load_state_dict`` they are embedded anew, and the embeddings of one model are never used with
    another. Embeddings are taken as they are.

    ``state_dict`` holds inputs, labels and class names (as text in a tensor, so that ``torch.load`` with
    ``weights_only`` and safetensors take it). One without names, such as a dictionary of the buffers, is refused by a
    strict ``load_state_dict``; with ``strict=False`` the set keeps the names it has.

    Args:
        inputs: images ``(K, C, H, W)`` (any input of three or more dimensions) or embeddings ``(K, J)``, of the type
            that the model takes or gives.
        labels: K class indices 0..C-1, each present at least once, as integers or a tensor; or K class names.
            None: all supports are of one class.
        class_names: C names, in the order of the class indices. Taken from ``labels`` where those are names,
            sorted.
        batch_size: how many images go through the model at once.

    Raises:
        TypeError: if ``inputs`` is not a tensor, or ``labels`` are neither integers nor names.
        ValueError: for an empty support, NaN or inf, labels or names that do not fit, or a ``batch_size`` below 1.

    Example:
        >>> support = SupportSet(torch.rand(4, 3, 84, 84), labels=["wren", "wren", "jay", "jay"])
        >>> support.class_names, support.labels
        (('jay', 'wren'), tensor([1, 1, 0, 0]))
    """

    inputs: Tensor
    labels: Tensor

    def __init__(
        self,
        inputs: Tensor,
        labels: Sequence[int] | Sequence[str] | Tensor | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        check_support_tensor(inputs)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        # Inference tensors could be neither updated by load_state_dict nor part of a graph later.
        with torch.inference_mode(False):
            indices, names = _format_labels(labels, class_names, len(inputs))
            self.register_buffer("inputs", (inputs.clone() if inputs.is_inference() else inputs).detach())
            self.register_buffer("labels", indices.to(inputs.device))
        self.class_names = names
        self.batch_size = batch_size
        self._embedded = _EmptyOnCopy()
        self._checked = tensor_version(self.inputs)
        self._class_weights: tuple[object, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def class_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The rows that average supports by class, ``(C, K)``: 1 / K_c at those of class c."""
        key = tensor_version(self.labels), dtype
        kept = self._class_weights  # one read: another thread may put its own in the place
        if kept is None or kept[0] != key:
            with plain_arithmetic(self.labels.device):
                members = nn.functional.one_hot(self.labels, self.n_classes).T.to(dtype)
                kept = self._class_weights = key, members / members.sum(1, keepdim=True)
        return kept[1]

    @property
    def holds_embeddings(self) -> bool:
        return self.inputs.dim() == 2

    @property
    def rule(self) -> object:
        """What Captum's LRP asks every module for.

        Raises:
            TypeError: always. Relevance cannot be propagated through a comparison of vectors.
        """
        raise TypeError(
            "LRP has no rule for a similarity: lengths and products of vectors are no layers. Use LayerSimilarityCAM, "
            "which adds up to the score; or run LRP on torch.nn.Sequential(model, linear), with the mean unit "
            "embedding of each class for the rows of linear.weight: the cosines times the length of the query"
        )

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> Tensor:
        """The supports' embeddings under ``forward_func``, detached, ``(K, J)``."""
        if self.holds_embeddings:
            # Loading a state changes them.
            if self._checked != tensor_version(self.inputs):
                check_finite(self.inputs)
                self._checked = tensor_version(self.inputs)
            return self.inputs
        state = model_state(forward_func)
        keep = state is not None and additional_forward_args is None
        key = (id(getattr(forward_func, "__func__", None)), model_state(self), state)
        kept = self._embedded.get(anchor(forward_func)) if keep else None
        if kept is not None and kept[0] == key:
            return kept[1]
        embeddings = check_finite(embed_images(forward_func, self.inputs, additional_forward_args, self.batch_size))
        # Read the state again: embedding in training mode moves batch-norm statistics.
        if keep and model_state(forward_func) == state:
            self._embedded[anchor(forward_func)] = (key, embeddings)
        return embeddings

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self.class_names).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.class_names = tuple(json.loads(bytes(state.tolist())))

    def _load_from_state_dict(self, *args: Any) -> None:
        names, errors = self.class_names, args[-1]
        super()._load_from_state_dict(*args)
        n_classes = int(self.labels.max()) + 1
        if not errors and self.n_classes != n_classes:
            errors.append(f"class_names: {self.n_classes} names for {n_classes} classes")
        if errors:
            self.class_names = names

    def extra_repr(self) -> str:
        kind = "embeddings" if self.holds_embeddings else "images"
        return f"{kind} {tuple(self.inputs.shape)}, n_classes={self.n_classes}"


class _EmptyOnCopy(weakref.WeakKeyDictionary[Any, tuple[Any, Tensor]]):
    """A cache that a copied or pickled owner starts without: Captum deep-copies keyword arguments."""

    def __reduce__(self) -> tuple[type[_EmptyOnCopy], tuple[()]]:
        return _EmptyOnCopy, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _EmptyOnCopy:
        return _EmptyOnCopy()


@dataclass(frozen=True)
class EmbeddedSupport:
    """Supports as embeddings, and the linear forms over them that make class scores.

    Scores that only rounding sets apart are ties: the first of the tied classes is the predicted one, or the runner-up,
    and a score less a foil that equals it is exactly zero. ``magnitude``, ``(B, K)``, is what rounding of the
    similarities is relative to (:meth:`Similarity.magnitude <captum_fam.similarity.Similarity.magnitude>`); None: their
    own size.

    Attributes:
        embeddings: ``(K, J)`` shared by the batch, or ``(B, K, J)``, one set a query.
        class_weights: ``(C, K)``; row c takes the mean over the supports of class c (Eq. 11).
        foil_weights: ``(C, K)``; what is subtracted from each class, where that is fixed.
        runner_up: subtract the best other class, which depends on the query.
    """

    embeddings: Tensor
    class_weights: Tensor
    foil_weights: Tensor | None = None
    runner_up: bool = False

    def class_scores(self, similarities: Tensor) -> Tensor:
        """S of Eq. 11 for every class, without the foil: ``(B, K)`` -> ``(B, C)``."""
        return F.class_similarity(similarities, self.class_weights.to(similarities.dtype))

    def predicted(self, similarities: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """The class of the largest S, before the foil: ``(B, K)`` -> ``(B,)``."""
        noise = self._rounding(self.class_weights, similarities, magnitude)
        return F.first_largest(self.class_scores(similarities), noise)

    def scores(self, similarities: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """S of every class minus that of its foil: ``(B, K)`` -> ``(B, C)``."""
        class_scores = self.class_scores(similarities)
        if not self.runner_up and self.foil_weights is None:
            return class_scores
        noise = self._rounding(self.class_weights, similarities, magnitude)
        if self.runner_up:
            other = _best_other_class(class_scores, noise)
            foil_scores, foil_noise = class_scores.gather(1, other), noise.gather(1, other)
        else:
            assert self.foil_weights is not None
            foil_scores = F.class_similarity(similarities, self.foil_weights.to(class_scores.dtype))
            foil_noise = self._rounding(self.foil_weights, similarities, magnitude)
        return F.zero_within(class_scores - foil_scores, noise + foil_noise)

    def support_weights(self, similarities: Tensor, target: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Weight of each support in the score of class ``target`` ``(B,)``: ``(B, K)``, negative on the foil."""
        weights = self.class_weights[target]
        if self.runner_up:
            noise = self._rounding(self.class_weights, similarities, magnitude)
            other = _best_other_class(self.class_scores(similarities), noise).gather(1, target.unsqueeze(1))
            weights = weights - self.class_weights[other.squeeze(1)]
        elif self.foil_weights is not None:
            weights = weights - self.foil_weights[target]
        return weights.to(similarities.dtype)

    def _rounding(self, weights: Tensor, similarities: Tensor, magnitude: Tensor | None) -> Tensor:
        """How far rounding can have moved sums of the similarities weighted by ``(C, K)``: ``(B, C)``."""
        sizes = similarities.detach().abs() if magnitude is None else magnitude
        # A sum over the features of each support, then one over the supports.
        count = self.embeddings.shape[-1] + weights.count_nonzero(1)
        return F.rounding_of_supports(count, sizes.dtype) * F.class_similarity(sizes, weights.to(sizes.dtype))


class SimilarityToSupport(nn.Module):
    """A classifier made of an embedding model and a support: ``forward(x)`` gives one score a class.

    With it every Captum method explains a model that has no classifier: the score of class c is Eq. 11, the
    mean similarity of the query to the supports of class c. A foil makes it a contrast, "why A and not B".

    Args:
        model: maps a batch to embeddings ``(B, J)``; a module or any callable.
        support: a :class:`SupportSet`, or a tensor of images or embeddings of one class.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric.
        foil: None; ``"others"``, the mean score of the other classes; ``"runner-up"``, the best of the other
            classes for each query; or a :class:`SupportSet` (or tensor), the mean of its classes' scores.
        aggregate: ``"mean"`` of the similarities (the paper), or the similarity to the mean embedding of the
            class, its ``"prototype"``.

    Raises:
        ValueError: for an unknown foil or aggregate, or a foil among classes of which there is only one.

    Example:
        >>> scores = SimilarityToSupport(model, SupportSet(images, labels), foil="others")
        >>> attributions = LayerGradCam(scores, model.layer4).attribute(queries, target=3)  # any method of Captum
    """

    def __init__(
        self,
        model: Callable[..., Any],
        support: SupportSet | Tensor,
        similarity: SimilarityLike = "cosine",
        foil: Literal["others", "runner-up"] | SupportSet | Tensor | None = None,
        aggregate: Aggregate = "mean",
    ) -> None:
        super().__init__()
        if aggregate not in ("mean", "prototype"):
            raise ValueError(f'aggregate must be "mean" or "prototype", got {aggregate!r}')
        if isinstance(foil, str) and foil not in ("others", "runner-up"):
            raise ValueError(f'foil must be "others", "runner-up", a SupportSet or None, got {foil!r}')
        self.model = model
        self.support = as_support_set(support)
        self.foil = as_support_set(foil) if isinstance(foil, SupportSet | Tensor) else foil
        self.similarity = get_similarity(similarity)
        self.aggregate = aggregate
        if isinstance(foil, str) and self.support.n_classes < 2:
            raise ValueError(f"foil={foil!r} needs a support of at least two classes, got one")
        self._kept: tuple[object, EmbeddedSupport] | None = None
        self.embedded()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.support.class_names

    def forward(self, *args: Any) -> Tensor:
        """Scores of the query batch, ``(B, C)``; further arguments go to the model."""
        return self._compare(*args)[0]

    def predict(self, *args: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with the predicted class of each query beside the scores, ``(B, C)`` and ``(B,)``.

        It is the class of the largest score before the foil, and the first of those that only rounding sets apart.
        """
        scores, support, similarities, magnitude = self._compare(*args)
        return scores, support.predicted(similarities, magnitude)

    def _compare(self, *args: Any) -> tuple[Tensor, EmbeddedSupport, Tensor, Tensor]:
        """Scores, what they are made of, the similarities to each support, and what their rounding is relative to."""
        self._refuse_deep_lift()
        warn_of_training_mode(self.model, 3)
        support = self.embedded()
        embedding = check_embedding(self.model(*args))
        check_embedding_sizes(embedding, support.embeddings)
        with torch.autocast(embedding.device.type, enabled=False):
            query, vectors = F.common_precision(embedding, support.embeddings)
            similarities = self.similarity.score(query, vectors)
            magnitude = self.similarity.magnitude(query.detach(), vectors, similarities.detach())
            return support.scores(similarities, magnitude), support, similarities, magnitude

    def _refuse_deep_lift(self) -> None:
        """DeepLift follows modules; through other functions it takes gradients, and no longer adds up."""
        hooks = (getattr(hook, "__module__", "") for hook in self._forward_pre_hooks.values())
        if not isinstance(self.similarity, Dot) and any("captum.attr._core.deep_lift" in str(name) for name in hooks):
            raise TypeError(
                f"DeepLift cannot follow {type(self.similarity).__name__}: lengths and differences of vectors are no "
                'modules, and its attributions would not add up. Use similarity="dot", IntegratedGradients or '
                "LayerSimilarityCAM"
            )

    def embedded(self) -> EmbeddedSupport:
        """The support under the model's present weights."""
        if getattr(self, "_is_replica", False):
            # A replica cannot tell whether the weights of the original have changed since it embedded the support.
            raise TypeError(WRAP_THE_MODEL)
        state, kept = self._state(), self._kept
        if kept is None or state is None or state != kept[0]:
            embedded = self._embed()
            # Read the state again: embedding in training mode moves batch-norm statistics.
            kept = self._kept = self._state(), embedded
        return kept[1]

    def _state(self) -> tuple[object, ...] | None:
        model = model_state(self.model)
        foil = model_state(self.foil) if isinstance(self.foil, SupportSet) else self.foil
        return None if model is None else (model, model_state(self.support), foil, self.aggregate)

    def _embed(self) -> EmbeddedSupport:
        embeddings, class_weights = embed_classes(self.support, self.model, self.aggregate)
        foils: Tensor | None = None
        if isinstance(self.foil, SupportSet):
            foils, weights = embed_classes(self.foil, self.model, self.aggregate)
            check_embedding_sizes(embeddings, foils, "foil")
        with plain_arithmetic(embeddings.device):
            foil_weights: Tensor | None = None
            if foils is not None:
                foil_weights = torch.cat(
                    [torch.zeros_like(class_weights), weights.mean(0).expand(len(class_weights), -1)], 1
                )
                class_weights = nn.functional.pad(class_weights, (0, len(foils)))
                embeddings = torch.cat([embeddings, foils])
            elif self.foil == "others":
                foil_weights = (class_weights.sum(0) - class_weights) / (len(class_weights) - 1)
        return EmbeddedSupport(embeddings, class_weights, foil_weights, runner_up=self.foil == "runner-up")


WRAP_THE_MODEL = (
    "a SimilarityToSupport cannot stand inside a DataParallel; "
    "wrap the model instead: SimilarityToSupport(DataParallel(model), support)"
)


def as_support_set(support: SupportSet | Tensor) -> SupportSet:
    """A tensor of images or embeddings becomes a :class:`SupportSet` of one class."""
    return support if isinstance(support, SupportSet) else SupportSet(support)


def embed_classes(
    support: SupportSet,
    forward_func: Callable[..., Any],
    aggregate: Aggregate = "mean",
    additional_forward_args: Any = None,
) -> tuple[Tensor, Tensor]:
    """Embeddings ``(K, J)`` and the rows ``(C, K)`` that average them by class; prototypes have K = C."""
    embeddings = support.embed(forward_func, additional_forward_args)
    with plain_arithmetic(embeddings.device):
        precise = F.widen(embeddings)
        class_weights = support.class_weights(precise.dtype)
        if aggregate == "mean":
            return embeddings, class_weights
        prototypes = class_weights @ precise
        return prototypes, torch.eye(len(prototypes), dtype=precise.dtype, device=precise.device)


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Normal tensors without a graph, in their own precision, whatever modes the caller is in."""
    # Most callers are in none; turning autocast off is the slowest of the three.
    in_autocast = torch.is_autocast_enabled(device.type)
    autocast = torch.autocast(device.type, enabled=False) if in_autocast else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield


def embed_images(
    forward_func: Callable[..., Any], images: Tensor, additional_forward_args: Any = None, batch_size: int = 64
) -> Tensor:
    """Embeddings of a stack of images, in chunks and without a graph: ``(K, ...)`` -> ``(K, J)``."""
    with torch.inference_mode(False), torch.no_grad():
        chunks = [
            check_embedding(_run_forward(forward_func, chunk, additional_forward_args=additional_forward_args))
            for chunk in images.split(batch_size)
        ]
        return torch.cat(chunks)


def check_support_tensor(support: object, name: str = "support") -> None:
    """Refuse anything but a finite, non-empty tensor of images or embeddings."""
    if not isinstance(support, Tensor):
        raise TypeError(f"{name} must be a tensor, a SupportSet or a MemoryBank, got {type(support).__name__}")
    if support.dim() < 2:
        raise ValueError(f"{name} must be images (K, C, H, W) or embeddings (K, J), got shape {tuple(support.shape)}")
    if support.numel() == 0:
        raise ValueError(f"{name} is empty: got shape {tuple(support.shape)}, expected at least one support")
    if support.is_complex() or (support.dim() == 2 and not support.is_floating_point()):
        kind = "embeddings (K, J)" if support.dim() == 2 else "images"
        raise TypeError(f"{name} must hold real numbers, {kind} of a floating-point type, got {support.dtype}")
    if support.is_floating_point() and not F.is_finite(support):
        raise ValueError(f"{name} contains NaN or inf")


def check_finite(embeddings: Tensor) -> Tensor:
    """Refuse supports that the model embeds to NaN or inf."""
    if not F.is_finite(embeddings):
        raise ValueError("support: its embeddings contain NaN or inf")
    return embeddings


def check_embedding(embedding: object) -> Tensor:
    """Refuse a forward function whose output is not a batch of vectors."""
    if not isinstance(embedding, Tensor):
        raise TypeError(
            f"forward_func must return a tensor of embeddings (B, J), got {type(embedding).__name__}; "
            "wrap it in a function that returns the embedding"
        )
    if embedding.dim() != 2:
        raise ValueError(
            f"forward_func must return embeddings of shape (B, J), got {tuple(embedding.shape)}; "
            "pool or flatten its output"
        )
    if not embedding.is_floating_point():
        raise TypeError(f"forward_func must return embeddings of a floating-point type, got {embedding.dtype}")
    return embedding


def check_embedding_sizes(query: Tensor, support: Tensor, name: str = "support") -> None:
    """Refuse a support that cannot be compared with the query's embedding."""
    if not support.is_floating_point():
        raise TypeError(f"{name} must have embeddings of a floating-point type, got {support.dtype}")
    if query.device != support.device:
        raise ValueError(f"{name} is on {support.device} but the query's embedding on {query.device}; move one of them")
    if query.shape[-1] != support.shape[-1]:
        raise ValueError(
            f"{name} embeds to {support.shape[-1]} features but the query to {query.shape[-1]}; "
            "encode both with the same model"
        )


def _best_other_class(scores: Tensor, noise: Tensor) -> Tensor:
    """For each class the index of the best of the others, ``(B, C)``: the winner's is the second, else the winner."""
    scores = scores.detach()
    best = F.first_largest(scores, noise).unsqueeze(1)
    second = F.first_largest(scores.scatter(1, best, -torch.inf), noise).unsqueeze(1)
    columns = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(columns == best, second, best)


def _format_labels(
    labels: Sequence[int] | Sequence[str] | Tensor | None, class_names: Sequence[str] | None, count: int
) -> tuple[Tensor, tuple[str, ...]]:
    if labels is None:
        labels = [0] * count
    if isinstance(labels, str):
        raise TypeError(f"labels must be one index or name for each support, got the single name {labels!r}")
    if len(labels) != count:
        raise ValueError(f"labels must have one entry a support: got {len(labels)} labels for {count} supports")
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    if all(isinstance(label, str) for label in labels):
        names = tuple(class_names or sorted({str(label) for label in labels}))
        unknown = sorted({str(label) for label in labels} - set(names))
        if unknown:
            raise ValueError(f"class_names lacks the label(s) {', '.join(unknown)}")
        indices = torch.tensor([names.index(str(label)) for label in labels])
    else:
        try:
            indices = torch.tensor([operator.index(label) for label in labels])  # type: ignore[arg-type]
        except TypeError:
            kinds = sorted({type(label).__name__ for label in labels})
            raise TypeError(f"labels must be integers or names, not both, got {', '.join(kinds)}") from None
        names = tuple(class_names or (str(index) for index in range(int(indices.max()) + 1)))
    present = indices.unique().tolist()
    if present != list(range(len(names))):
        raise ValueError(
            f"labels must use every class index 0..{len(names) - 1} at least once, got {present}; "
            "number the classes from zero or pass their names as labels"
        )
    return indices, names
