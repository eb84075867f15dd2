"""A gallery of images, whose mean similarity to a query is the foil "gallery"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._arithmetic import plain_arithmetic
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import (
    as_exclusion,
    check_exclusion,
    check_exclusion_batch,
    check_support_tensor,
    plain_tensor,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.contrast import Contrast
from captum_fam.support.gallery_rows import NO_ROWS, GalleryRows, MeanOfRows
from captum_fam.support.mean_form import MeanForm, MeanVectors, mean_form
from captum_fam.support.members import SameForAll
from captum_fam.support.support_set import SupportSet

GalleryLike = Support | Tensor


class Gallery(nn.Module):
    r"""Many images, each of which counts the same in the mean similarity to a query.

    As a foil, a gallery asks why a query is more similar to its support than to the average image. For the cosine, a
    dot product and squared distances, the mean over any number of images is the similarity to one vector. For the
    cosine, :math:`\frac1M \sum_k \langle \hat Z, \hat t_k \rangle = \langle \hat Z, m \rangle` with the mean m of the
    embeddings of length one. Other similarities compare with every image.

    Args:
        source: a :class:`~captum_fam.SupportSet`, whose classes do not matter, a :class:`~captum_fam.MemoryBank` or
            another support with :attr:`Support.forms_gallery`; images ``(M, C, H, W)``; embeddings ``(M, J)``; or the
            mean vector ``(J,)``, for the cosine the mean of embeddings of length one.
        left_out: rows that are left out of the mean for each query, such as the query itself: ``(B,)``, ``(B, E)`` or
            lists of different lengths; -1 leaves nothing out. Default: None, no row is left out.

    Raises:
        TypeError: for a source that is no support and no tensor.
        ValueError: for a support that is no gallery, an empty tensor, NaN or inf, or rows that are left out of a mean
            vector.

    Example:
        >>> from captum_fam.support import ContrastedSupport
        >>> support, gallery = SupportSet(torch.eye(3)[:1]), Gallery(torch.eye(3))
        >>> ContrastedSupport(support, gallery).compare(torch.tensor([[0.6, 0.8, 0.0]])).scores  # 0.6 - 1.4 / 3
        tensor([[0.1333]])
    """

    def __init__(
        self,
        source: GalleryLike,
        left_out: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.source: Support | None = None
        self.mean: Tensor | None
        if isinstance(source, Tensor) and source.dim() == 1:
            self.register_buffer("mean", plain_tensor(check_support_tensor(source[None], "gallery")[0]))
        else:
            self.register_buffer("mean", None)
            self.source = source if isinstance(source, Support) else SupportSet(check_support_tensor(source, "gallery"))
            if not self.source.forms_gallery:
                raise ValueError(no_gallery(self.source))
        self.left_out = None if left_out is None else self._as_left_out(left_out)

    @property
    def per_query(self) -> bool:
        """Whether rows are left out for each query, so that the gallery fits one batch of queries only."""
        return self.left_out is not None or (self.source is not None and self.source.per_query)

    def for_queries(self, start: int, stop: int) -> Gallery:
        """The gallery of the queries ``start`` to ``stop - 1``.

        Args:
            start: the first query.
            stop: the query behind the last query.
        """
        if not self.per_query:
            return self
        return self._with(
            None if self.source is None else self.source.for_queries(start, stop),
            None if self.left_out is None else self.left_out[start:stop],
        )

    def without(self, rows: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Gallery:
        """The gallery without some rows for each query.

        Args:
            rows: rows to leave out for each query, as ``left_out`` of the class.

        Returns:
            A gallery for this batch of queries.

        Raises:
            ValueError: for a mean vector.
        """
        return self._with(self.source, self._as_left_out(rows))

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> Gallery:
        """Embed the images of the gallery.

        Args:
            forward_func: maps a batch of images to embeddings ``(B, J)``.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Returns:
            A gallery of embeddings; the gallery itself if it holds embeddings already.
        """
        if self.source is None:
            return self
        embedded = self.source.embed(forward_func, additional_forward_args)
        return self if embedded is self.source else self._with(embedded, self.left_out)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        """Check that the images of the gallery can go through the same model as the queries.

        Args:
            inputs: the input tensors of the model, queries first.
            args: further arguments of the model; None if there are none.

        Raises:
            ValueError: if they cannot, or rows are left out for another number of queries.
        """
        if self.source is not None:
            self.source.check_queries(inputs, args)
        if self.left_out is not None:
            check_exclusion_batch(self.left_out, len(inputs[0]), "left_out")

    def check_features(self, features: int | None, name: str) -> None:
        """Check that the embeddings of the gallery have the length of other embeddings.

        Args:
            features: the length of the other embeddings; None if it is not known yet.
            name: what has the other embeddings, for the message.

        Raises:
            ValueError: for another length; a gallery of images is not checked.
        """
        _check_same(features_of(self.source) if self.mean is None else len(self.mean), features, name)

    def contrast(self, query: Tensor, similarity: Similarity) -> Contrast:
        """The mean similarity of each query to the gallery, as a contrast.

        Args:
            query: embeddings ``(B, J)`` in float32 or float64, the precision of the result.
            similarity: the similarity that the model decides with.

        Raises:
            ValueError: for a gallery of images that are not embedded yet, embeddings of another length than the query,
                a query for which every row is left out, or a mean vector where the rows are needed.
        """
        rows = MeanOfRows(self.mean) if self.mean is not None else self._rows()
        _check_same(rows.features, query.shape[-1], "query")
        left_out = self._left_out(rows, len(query))
        form = mean_form(similarity)
        with plain_arithmetic(query.device):
            if form is None:
                vectors, weights = _all_rows(rows, left_out)
                offsets = torch.zeros(())
            else:
                vectors, weights, offsets = _means(rows, left_out, form)
            vectors, weights = vectors.to(query.device), weights.to(query.device)
        members = SameForAll(weights.to(query.dtype).expand(len(query), -1), n_classes=1)
        baseline = Comparison(query, vectors.to(query.dtype), members, similarity, ("gallery",))
        return Contrast(baseline, offsets.to(query))

    def extra_repr(self) -> str:
        rows = "mean vector" if self.source is None else type(self.source).__name__
        return rows if self.left_out is None else f"{rows}, rows left out for {len(self.left_out)} queries"

    def _rows(self) -> GalleryRows:
        assert self.source is not None
        if isinstance(self.source, SupportSet) and not self.source.holds_embeddings:
            raise ValueError("gallery holds images but embeddings are needed; pass gallery.embed(model)")
        return self.source.gallery_rows()

    def _as_left_out(self, rows: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        left_out = as_exclusion(rows, torch.device("cpu"), "left_out")
        if self.mean is not None and (left_out >= 0).any():
            raise ValueError(NO_ROWS)
        return left_out

    def _left_out(self, rows: GalleryRows, n_queries: int) -> Tensor | None:
        """The rows left out for each query, ``(B, E)``, by this gallery and by its source; None for none at all."""
        parts = [part for part in (self.left_out, rows.left_out) if part is not None]
        if not parts:
            return None
        checked = [check_exclusion(part.cpu(), n_queries, len(rows), "left_out") for part in parts]
        joined = torch.cat(checked, 1)
        if len(parts) > 1:
            joined = check_exclusion(joined, n_queries, len(rows), "left_out")
        return joined if (joined >= 0).any() else None

    def _with(self, source: Support | None, left_out: Tensor | None) -> Gallery:
        gallery = Gallery(self.mean if source is None else source)  # type: ignore[arg-type]  # one of both is there
        gallery.left_out = left_out
        return gallery


def _check_same(own: int | None, features: int | None, name: str) -> None:
    if own is not None and features is not None and own != features:
        raise ValueError(
            f"gallery embeds to {own} features but the {name} to {features}; encode both with the same model"
        )


def _means(rows: GalleryRows, left_out: Tensor | None, form: MeanForm) -> MeanVectors:
    """The vector that stands for all rows, ``(1, J)``; with rows left out the vector of each query, ``(B, 1, J)``."""
    total = rows.total(form)
    if left_out is None:
        vectors, weights, offsets = form.vectors(total / len(rows))
        return MeanVectors(vectors[None], weights.reshape(1, 1), offsets)
    counted, places = left_out.clamp_min(0).unique(return_inverse=True)
    lifted = form.lift(rows.some(counted).detach().cpu().double())
    own = torch.zeros(len(left_out), len(counted), dtype=torch.float64)
    query, column = (left_out >= 0).nonzero(as_tuple=True)
    own[query, places[query, column]] = 1  # a row that is named twice is left out once
    left = len(rows) - own.sum(1, keepdim=True)
    vectors, weights, offsets = form.vectors((total - own @ lifted) / left)
    return MeanVectors(vectors.unsqueeze(1), weights.unsqueeze(1), offsets)


def _all_rows(rows: GalleryRows, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """All rows ``(M, J)``, and the weight of each for each query, ``(1, M)`` or ``(B, M)``."""
    vectors = rows.whole().detach()
    weights = torch.ones(1 if left_out is None else len(left_out), len(vectors), dtype=torch.float64)
    if left_out is not None:
        query, column = (left_out >= 0).nonzero(as_tuple=True)
        weights[query, left_out[query, column]] = 0
    return vectors, weights / weights.sum(1, keepdim=True)


def features_of(support: Support | None) -> int | None:
    """The length of the embeddings of a support, J; None for images, and where it is not known.

    Args:
        support: the support.
    """
    embeddings = support.inputs if isinstance(support, SupportSet) else getattr(support, "embeddings", None)
    return embeddings.shape[1] if isinstance(embeddings, Tensor) and embeddings.dim() == 2 else None


def no_gallery(support: Support) -> str:
    """The message for a support that has no rows of its own to take a mean over.

    Args:
        support: the support.
    """
    return (
        f'foil="gallery": {type(support).__name__} holds no gallery; pass gallery=, the images or embeddings of the '
        "gallery (a tensor, a SupportSet, a MemoryBank) or its mean vector"
    )
