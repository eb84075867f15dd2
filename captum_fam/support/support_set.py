"""A set of labeled support images or embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam._text import printable
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import (
    check_embedding_sizes,
    check_finite,
    check_images,
    check_support_tensor,
    whole_number,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.embedding import embed_supports
from captum_fam.support.gallery_rows import TensorRows
from captum_fam.support.labels import Labels, encode_labels
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
        labels: the class of each support, ``(K,)``: names, or whole numbers of any type and size, as a list, a tensor
            or an array. The classes are the different labels in ascending order. With ``class_names``, whole numbers
            are indices of the names. Default: None, all supports belong to one class.
        class_names: C names in the order of the class indices, each with at least one support. Default: the different
            labels in ascending order, as texts.
        batch_size: how many images go through the model at once. Default: 64.
        ids: what identifies each support, such as its path, ``(K,)``, for :meth:`without`; None for a support without
            an id. Default: None, no support has an id.

    Attributes:
        inputs: images ``(K, C, H, W)`` or embeddings ``(K, J)``.
        labels: class indices, int64 ``(K,)``.
        class_names: C names.
        ids: K ids, or None.

    Raises:
        TypeError: if ``inputs`` is no tensor of real numbers, ``labels`` are neither whole numbers nor names, or
            ``batch_size`` is no whole number.
        ValueError: for an empty support, NaN or inf, labels or names that do not fit, or a ``batch_size`` below 1.

    Example:
        >>> support = SupportSet(torch.rand(4, 3, 84, 84), labels=["wren", "wren", "jay", "jay"])
        >>> support.class_names, support.labels
        (('jay', 'wren'), tensor([1, 1, 0, 0]))
    """

    forms_gallery = True
    inputs: Tensor
    labels: Tensor

    def __init__(
        self,
        inputs: Tensor,
        labels: Labels | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 64,
        ids: Sequence[Hashable] | None = None,
    ) -> None:
        super().__init__()
        check_support_tensor(inputs)
        self.batch_size = whole_number(batch_size, "batch_size")
        # An inference tensor could neither be updated by load_state_dict nor take part in a graph later.
        with torch.inference_mode(False):
            indices, names = encode_labels([0] * len(inputs) if labels is None else labels, class_names, len(inputs))
            self.register_buffer("inputs", (inputs.clone() if inputs.is_inference() else inputs).detach())
            self.register_buffer("labels", indices.to(inputs.device))
        counts = indices.bincount(minlength=len(names))
        if not counts.all():
            missing = [name for name, n_supports in zip(names, counts.tolist(), strict=True) if not n_supports]
            raise ValueError(
                f"class_names: {len(missing)} of the {len(names)} classes have no support, the first is "
                f"'{printable(missing[0])}'; leave them out"
            )
        self.class_names = names
        if ids is not None and len(ids) != len(inputs):
            raise ValueError(f"ids must be one per support: got {len(ids)} for {len(inputs)} supports")
        self.ids = None if ids is None else tuple(ids)

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
            TypeError: if ``forward_func`` does not give a floating-point tensor, or has weights of another dtype than
                the images.
            ValueError: if ``forward_func`` does not give finite embeddings ``(B, J)``.

        Example:
            >>> embedded = SupportSet(images, labels).embed(model)  # once, for many calls
        """
        if self.holds_embeddings:
            return self
        embeddings = embed_supports(forward_func, self.inputs, additional_forward_args, self.batch_size)
        return SupportSet(embeddings, self.labels, self.class_names, self.batch_size, self.ids)

    def without(self, own_ids: Sequence[Hashable]) -> Support:
        """The set without the support that is the query itself, for each query.

        Args:
            own_ids: the id of each query of a batch; None for a query that is not in the set.

        Returns:
            The set itself if it has none of the queries, else a support for this batch of queries, with the mean over
            the other supports of a class. A class without another support has the score -inf.

        Raises:
            ValueError: for a set without ids, or a query that is the only support.

        Example:
            >>> support = SupportSet(torch.eye(3), ["jay", "jay", "wren"], ids=["a.png", "b.png", "c.png"])
            >>> support.without(["b.png"]).compare(torch.tensor([[0.6, 0.8, 0.0]])).scores
            tensor([[0.6000, 0.0000]])
        """
        # The class is a wrapper of this class, so that its file imports this file.
        from captum_fam.support.leave_out import LeaveOutSupport, same_ids

        if self.ids is None:
            raise ValueError("ids is missing: make the SupportSet with ids=, such as the paths of the images")
        left_out = same_ids(own_ids, self.ids)
        return LeaveOutSupport(self, left_out) if left_out.any() else self

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

    def gallery_rows(self) -> TensorRows:
        """All supports, whatever their class, as the rows of a gallery."""
        return TensorRows(self.embeddings())

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
