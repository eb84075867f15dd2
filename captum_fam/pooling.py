"""Poolings as modules: ``(B, N, *spatial)`` activations to ``(B, N)`` feature vectors, any spatial rank.

The output has the floating-point dtype of the input; LSE, GeM and the weights of :class:`AttentionPooling` compute
half precision in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam import functional


class GAP(nn.Module):
    r"""Global average pooling, :math:`z_n = \frac1P \sum_p A_{n,p}` over the P positions.

    The pooling of the paper's few-shot and contrastive models (section IV-B).

    Example:
        >>> GAP()(torch.tensor([[[0.0, 3.0], [5.0, 1.0]]]))  # one sample, two channels, two positions
        tensor([[1.5000, 3.0000]])
    """

    def forward(self, activation: Tensor) -> Tensor:
        return functional.global_average_pool(activation)


class GMP(nn.Module):
    r"""Global max pooling, :math:`z_n = \max_p A_{n,p}`: the pooling of the paper's retrieval models.

    Example:
        >>> GMP()(torch.tensor([[[0.0, 3.0], [5.0, 1.0]]]))
        tensor([[3., 5.]])
    """

    def forward(self, activation: Tensor) -> Tensor:
        return functional.global_max_pool(activation)


class LSE(nn.Module):
    r"""Log-sum-exp pooling, :math:`z_n = \frac1r \log \frac1P \sum_p e^{r A_{n,p}}`: between GAP and GMP.

    Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks", CVPR 2015.

    Args:
        sharpness: r > 0; for r to 0 the limit is GAP, for r to infinity GMP. Default: 10.

    Raises:
        ValueError: if ``sharpness`` is not positive.

    Example:
        >>> LSE(sharpness=1.0)(torch.tensor([[[0.0, 3.0], [5.0, 1.0]]]))
        tensor([[2.3554, 4.3250]])
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
    r"""Generalized-mean pooling, :math:`z_n = (\frac1P \sum_p A_{n,p}^q)^{1/q}`, usual in image retrieval.

    Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019. Activations
    below 1e-6 are raised to 1e-6 first.

    Args:
        exponent: q > 0; q = 1 is GAP of non-negative activations, for q to infinity the limit is GMP. Default: 3.

    Raises:
        ValueError: if ``exponent`` is not positive.

    Example:
        >>> GeM(exponent=2.0)(torch.tensor([[[1.0, 7.0], [3.0, 3.0]]]))
        tensor([[5., 3.]])
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


class AttentionPooling(nn.Module):
    r"""Mean over the positions, weighted by a learned query, :math:`z = \sum_p a_p A_p`.

    The weights are :math:`a_p = \operatorname{softmax}_p(q^\top A_p / \sqrt N)`, with the N channels :math:`A_p` of a
    position. This is one head of the attention of a single query over the positions (Vaswani et al., "Attention Is All
    You Need", NeurIPS 2017), without a projection, so that the channels of the output are those of the activation. The
    query begins with zeros, for which the pooling is :class:`GAP`; :func:`~captum_fam.experiments.train_pooling` trains
    it. The exact map holds the weights, so that it adds up to the score.

    Args:
        channels: N.

    Raises:
        ValueError: in use, for an activation with another number of channels.

    Example:
        >>> pooling = AttentionPooling(channels=1)
        >>> _ = nn.init.constant_(pooling.query, 2.0)
        >>> pooling(torch.tensor([[[0.0, 0.5493]]])).detach()  # the weights are 1/4 and 3/4
        tensor([[0.4120]])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, activation: Tensor) -> Tensor:
        if activation.dim() < 2 or activation.shape[1] != len(self.query):
            raise ValueError(
                f"activation must be (B, {len(self.query)}, *spatial), as the query of the pooling, got "
                f"{tuple(activation.shape)}"
            )
        positions = activation.flatten(2)
        wide = functional.widen(positions)
        logits = torch.einsum("bnp,n->bp", wide, self.query.to(wide) / len(self.query) ** 0.5)
        pooled = (wide * logits.softmax(1).unsqueeze(1)).sum(2)
        return pooled.to(activation.dtype)

    def extra_repr(self) -> str:
        return f"channels={len(self.query)}"
