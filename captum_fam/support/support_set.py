"""A set of labeled support images or embeddings."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam.embedding.forward import embed_images
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import check_embedding_sizes, check_finite, check_images, check_support_tensor
from captum_fam.support.comparison import Comparison
from captum_fam.support.members import SharedMembers


class SupportSet(Support, nn.Module):
    """A set of labeled support images or embeddings, which all queries share.

    Map methods embed support images again in every call, so that the embeddings always belong to the present weights of
    the model. If the weights do not change, call ``support.embed(model)`` once: it returns a set of embeddings, which
    are used as they are.

    ``state_dict`` holds inputs, labels and class names. The names are text in a tensor, which ``torch.load`` with
    ``weights_only`` and safetensors can store. A strict ``load_state_dict`` refuses a state without names; with
    ``strict=False`` the set keeps its present names.

    Args:
        inputs: images ``(K, C, H, W)``, or any model input of three or more dimensions; or embeddings ``(K, J)``.
        labels: K class indices 0..C-1, each used at least once, as integers or a tensor; or K class names. Default:
            None, all supports belong to one class.
        class_names: C names in the order of the class indices. Default: the sorted names in ``labels``, or the class
            indices.
        batch_size: how many images go through the model at once. Default: 64.

    Attributes:
        inputs: images ``(K, C, H, W)`` or embeddings ``(K, J)``.
        labels: class indices, int64 ``(K,)``.
        class_names: C names.

    Raises:
        TypeError: if ``inputs`` is no tensor of real numbers, or ``labels`` are neither integers nor names.
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
        # An inference tensor could neither be updated by load_state_dict nor take part in a graph later.
        with torch.inference_mode(False):
            indices, names = _format_labels(labels, class_names, len(inputs))
            self.register_buffer("inputs", (inputs.clone() if inputs.is_inference() else inputs).detach())
            self.register_buffer("labels", indices.to(inputs.device))
        self.class_names = names
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def class_counts(self) -> list[int]:
        counts: list[int] = self.labels.bincount(minlength=self.n_classes).tolist()
        return counts

    def class_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The support weights of Eq. 11: 1 / K_c at the K_c supports of class c, and 0 elsewhere.

        Args:
            dtype: the dtype of the weights. Default: float32.

        Returns:
            ``(C, K)``.
        """
        with plain_arithmetic(self.labels.device):
            members = nn.functional.one_hot(self.labels, self.n_classes).T.to(dtype)
            return members / members.sum(1, keepdim=True)

    @property
    def holds_embeddings(self) -> bool:
        """Whether the set holds embeddings, and not images that must be embedded first."""
        return self.inputs.dim() == 2

    @property
    def rule(self) -> object:
        """The propagation rule that Captum's LRP reads from every module; a support has none.

        Raises:
            TypeError: always, because relevance cannot be propagated through a comparison of vectors.
        """
        raise TypeError(
            "LRP has no rule for a similarity: lengths and products of vectors are no layers. Use LayerSimilarityCAM, "
            "which adds up to the score; or run LRP on torch.nn.Sequential(model, linear), with the mean unit "
            "embedding of each class for the rows of linear.weight: the cosines times the length of the query"
        )

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> SupportSet:
        """Embed the images of the set with ``forward_func``.

        Args:
            forward_func: maps a batch of images to embeddings ``(B, J)``.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Returns:
            A set of embeddings; the set itself if it holds embeddings already.

        Raises:
            TypeError: if ``forward_func`` does not give a floating-point tensor.
            ValueError: if ``forward_func`` does not give finite embeddings ``(B, J)``.

        Example:
            >>> embedded = SupportSet(images, labels).embed(model)  # once, for many calls
        """
        if self.holds_embeddings:
            return self
        embeddings = check_finite(embed_images(forward_func, self.inputs, additional_forward_args, self.batch_size))
        return SupportSet(embeddings, self.labels, self.class_names, self.batch_size)

    def prototypes(self) -> SupportSet:
        """A set with one support per class: the mean embedding of the supports of the class.

        Raises:
            ValueError: for a set of images, which must be embedded first.
        """
        embeddings = F.widen(self.embeddings())
        with plain_arithmetic(embeddings.device):
            means = self.class_weights(embeddings.dtype) @ embeddings
        return SupportSet(means, range(self.n_classes), self.class_names)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        if not self.holds_embeddings:
            check_images(self.inputs, inputs, args)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the supports of every class (Eq. 11).

        Raises:
            ValueError: for a set of images, which must be embedded first, or for queries that do not fit.
        """
        embeddings = self.embeddings()
        check_embedding_sizes(query, embeddings)
        members = SharedMembers(self.class_weights(F.widen(embeddings).dtype))
        return Comparison(query, embeddings, members, self.measure(similarity), self.class_names, target)

    def embeddings(self) -> Tensor:
        """The embeddings of the set, ``(K, J)``.

        Raises:
            ValueError: for a set of images, or for NaN or inf that ``load_state_dict`` brought in.
        """
        if not self.holds_embeddings:
            raise ValueError("support holds images but embeddings are needed; pass support.embed(model)")
        return check_finite(self.inputs)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self.class_names).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.class_names = tuple(json.loads(bytes(state.tolist())))

    def _load_from_state_dict(self, *args: Any) -> None:
        # PyTorch collects error messages in the last argument, and raises them when all modules are loaded.
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


def _format_labels(
    labels: Sequence[int] | Sequence[str] | Tensor | None, class_names: Sequence[str] | None, count: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices, int64 ``(K,)``, and C class names."""
    if labels is None:
        labels = [0] * count
    if isinstance(labels, str):
        raise TypeError(f"labels must be one index or name for each support, got the single name {labels!r}")
    if len(labels) != count:
        raise ValueError(f"labels must have one entry per support: got {len(labels)} labels for {count} supports")
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
