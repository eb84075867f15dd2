"""Changes of the colors of a whole batch at once, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Brightness and two colors of the YIQ space, as sums of red, green and blue.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def change_colors(images: Tensor, colors: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of images, take their colors away, and blur them.

    All but the blur is one linear map of red, green and blue for each image: the hue turns the two colors of the YIQ
    space, where torchvision turns the hue of HSV. Brightness, contrast, saturation and hue come in this order, and
    values are cut to [0, 1] once, at the end. So the cost is that of a single pass, which matters on a CPU: torchvision
    needs two milliseconds for the color jitter of one image of 64 x 64 pixels.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        colors: result of :func:`~captum_fam.experiments.training.contrastive.views.draw_colors` for each image,
            ``(B, 6)``, on the same device.

    Returns:
        ``(B, 3, H, W)`` in [0, 1].

    Example:
        >>> image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
        >>> change_colors(image, torch.tensor([[2.0, 1.0, 1.0, 0.0, 0.0, 0.0]])).flatten()
        tensor([0.4000, 0.8000, 1.0000])
    """
    yiq = torch.tensor(_YIQ, dtype=images.dtype, device=images.device)
    brightness, contrast, saturation, turns, gray, blur = colors.to(images.dtype).unbind(1)
    zero = torch.zeros_like(turns)
    # On gray images and those without saturation only the first row is left.
    chroma = saturation * (1 - gray)
    cosine, sine = chroma * (2 * math.pi * turns).cos(), chroma * (2 * math.pi * turns).sin()
    rows = [[zero + 1, zero, zero], [zero, cosine, -sine], [zero, sine, cosine]]
    turn = torch.stack([torch.stack(row, 1) for row in rows], 1)
    matrix = yiq.inverse() @ turn @ yiq * (brightness * contrast)[:, None, None]
    mean_gray = torch.einsum("c,bchw->b", yiq[0], images) / images[0, 0].numel()
    offset = brightness * (1 - contrast) * mean_gray
    mapped = torch.baddbmm(offset[:, None, None], matrix, images.flatten(2)).clamp_(0, 1).view_as(images)
    return _blurred(mapped, blur)


def _blurred(images: Tensor, deviations: Tensor) -> Tensor:
    """Images after a Gaussian blur of their own, over a tenth of their side; a deviation of 0 leaves an image."""
    chosen = deviations > 0
    if not chosen.any():
        return images
    sharp, deviation = images[chosen], deviations[chosen]
    count, channels, height, width = sharp.shape
    reach = max(1, min(height, width) // 20)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernels = (-(offsets**2) / (2 * deviation[:, None] ** 2)).exp()
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # As the channels of a single image, each with a kernel of its own, first down the columns and then along the rows.
    flat = nn.functional.pad(sharp.reshape(1, count * channels, height, width), [reach] * 4, mode="reflect")
    flat = nn.functional.conv2d(flat, kernels[:, None, :, None], groups=count * channels)
    flat = nn.functional.conv2d(flat, kernels[:, None, None, :], groups=count * channels)
    result = images.clone()
    result[chosen] = flat.view(count, channels, height, width)
    return result
