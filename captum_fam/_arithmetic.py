"""The arithmetic in which maps and scores are computed, whatever PyTorch modes the caller has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Switch off inference mode, gradients and autocast, so that tensors are normal and keep their precision.

    Args:
        device: the device for whose type autocast is switched off.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), plain_arithmetic(torch.device("cpu")):
        ...     (torch.eye(2) @ torch.eye(2)).dtype
        torch.float32
    """
    # Entering an autocast context is slow compared with the other two, and most callers do not use autocast.
    in_autocast = torch.is_autocast_enabled(device.type)
    autocast = torch.autocast(device.type, enabled=False) if in_autocast else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield
