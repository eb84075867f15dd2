"""Poolings as modules: ``(B, N, *spatial)`` activations to ``(B, N)`` feature vectors, any spatial rank."""

from __future__ import annotations

from torch import Tensor, nn

from captum_fam import functional


class GAP(nn.Module):
    """Global average pooling, the pooling of the paper's few-shot and contrastive models.

    Example:
        >>> GAP()(torch.rand(2, 64, 5, 5)).shape
        torch.Size([2, 64])
    """

    def forward(self, activation: Tensor) -> Tensor:
        return functional.global_average_pool(activation)


class GMP(nn.Module):
    """Global max pooling, the pooling of the paper's retrieval models."""

    def forward(self, activation: Tensor) -> Tensor:
        return functional.global_max_pool(activation)


class LSE(nn.Module):
    """Log-sum-exp pooling, ``log(mean(exp(r A))) / r``: a smooth step from GAP to GMP.

    Args:
        sharpness: r > 0; towards 0 it is GAP, towards infinity GMP.
    """

    def __init__(self, sharpness: float = 10.0) -> None:
        super().__init__()
        if not sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        self.sharpness = sharpness

    def forward(self, activation: Tensor) -> Tensor:
        return functional.log_sum_exp_pool(activation, self.sharpness)

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness}"


class GeM(nn.Module):
    """Generalised-mean pooling, ``mean(A^p)^(1/p)``, usual in image retrieval.

    Args:
        exponent: p > 0; 1 is GAP on non-negative activations, towards infinity GMP.
    """

    def __init__(self, exponent: float = 3.0) -> None:
        super().__init__()
        if not exponent > 0:
            raise ValueError(f"exponent must be positive, got {exponent}")
        self.exponent = exponent

    def forward(self, activation: Tensor) -> Tensor:
        return functional.generalized_mean_pool(activation, self.exponent)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"
