"""The covariance of embeddings, shrunk so that it has an inverse: the matrix of a Mahalanobis distance."""

from __future__ import annotations

import torch
from torch import Tensor


def ledoit_wolf(samples: Tensor) -> tuple[Tensor, float]:
    r"""Covariance of samples with mean zero, shrunk towards a multiple of the identity by Ledoit and Wolf's amount.

    With :math:`S = \frac1n \sum_i x_i x_i^\top` and its mean variance :math:`\mu = \operatorname{tr}(S) / J`, the
    result is :math:`(1 - \rho) S + \rho \mu I`, where :math:`\rho = \min(1, b^2 / d^2)` with
    :math:`d^2 = \|S - \mu I\|_F^2` and :math:`b^2 = \frac1{n^2} \sum_i \|x_i x_i^\top - S\|_F^2`. It is positive
    definite even for fewer samples than features, unless all samples are one vector up to its sign (Ledoit and Wolf, "A
    well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate Analysis 2004).

    Args:
        samples: ``(n, J)``, floating point, with a mean of zero. They are computed with in float64.

    Returns:
        The covariance, float64 ``(J, J)``, and the amount of shrinkage :math:`\rho` in [0, 1].

    Raises:
        ValueError: for another shape, fewer than two samples, samples that are all zero or one vector up to its sign,
            or NaN or inf.

    Example:
        >>> samples = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> covariance, shrinkage = ledoit_wolf(samples)
        >>> covariance, round(shrinkage, 4)
        (tensor([[1.2917, 0.0000],
                [0.0000, 1.2083]], dtype=torch.float64), 0.9444)
    """
    if samples.dim() != 2 or len(samples) < 2:
        raise ValueError(f"samples must be (n, J) with n of at least 2, got {tuple(samples.shape)}")
    if not samples.isfinite().all():
        raise ValueError("samples contain NaN or inf")
    samples = samples.detach().double()
    if not samples.any():
        raise ValueError("samples are all zero, so that they have no covariance to invert; pass samples that differ")
    count, features = samples.shape
    covariance = samples.T @ samples / count
    mean_variance = covariance.diagonal().mean()
    identity = torch.eye(features, dtype=samples.dtype, device=samples.device)
    distance = (covariance - mean_variance * identity).square().sum()
    # The sum of ||x x' - S||² over the samples is the sum of ||x||⁴ minus n ||S||².
    spread = (samples.square().sum(1).square().sum() / count - covariance.square().sum()) / count
    # A covariance that is a multiple of the identity stays as it is.
    shrinkage = float((spread / distance).clamp(0, 1)) if distance > 0 else 0.0
    # Two samples of mean zero are x and -x: every x x' is S, and nothing is shrunk but the rounding.
    if distance > 0 and shrinkage < features * torch.finfo(samples.dtype).eps:
        raise ValueError("samples are one vector up to its sign, so that their covariance has no inverse; pass more")
    return (1 - shrinkage) * covariance + shrinkage * mean_variance * identity, shrinkage


def inverse_covariance(embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
    """The inverse of the shrunk covariance of embeddings: the matrix of :class:`~captum_fam.similarity.Mahalanobis`.

    With labels, it is the covariance within the classes: a direction in which the images of one class differ counts
    little. Without labels, it is the covariance of all embeddings around their mean.

    Args:
        embeddings: ``(n, J)``, floating point, of images that are not compared later.
        labels: class of each embedding, integers ``(n,)``. Default: None.

    Returns:
        float64 ``(J, J)``, symmetric and positive definite, on the device of the embeddings.

    Raises:
        ValueError: for embeddings or labels of another shape, embeddings that hold NaN or inf, that do not differ, or
            of only two images.

    Example:
        >>> from captum_fam.similarity import Mahalanobis
        >>> embeddings, labels = torch.rand(40, 8), torch.arange(40) % 4
        >>> Mahalanobis(inverse_covariance(embeddings, labels))(embeddings[:2], embeddings[:3]).shape
        torch.Size([2, 3])
    """
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings must be (n, J), got {tuple(embeddings.shape)}")
    embeddings = embeddings.detach().double()
    if labels is None:
        centered = embeddings - embeddings.mean(0)
    else:
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(f"labels must be (n,) = ({len(embeddings)},), got {tuple(labels.shape)}")
        classes, index = labels.to(embeddings.device).unique(return_inverse=True)
        sums = embeddings.new_zeros(len(classes), embeddings.shape[1]).index_add_(0, index, embeddings)
        centered = embeddings - (sums / index.bincount()[:, None])[index]
    inverse = torch.linalg.inv(ledoit_wolf(centered)[0])
    return (inverse + inverse.T) / 2
