"""The arithmetic in which maps and scores are computed, whatever modes the caller is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Normal tensors without a graph, in their own precision: no inference mode, no gradients, no autocast.

    Args:
        device: whose autocast is switched off.
    """
    # Most callers are in none of the modes; switching autocast off is the slowest of the three.
    in_autocast = torch.is_autocast_enabled(device.type)
    autocast = torch.autocast(device.type, enabled=False) if in_autocast else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield
