"""Looking at a model in the middle of its training, without a trace in the training."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_SEED = 0


@contextmanager
def training_paused(*modules: object) -> Iterator[None]:
    """Put modules into eval mode while the context lasts, with random numbers of the context's own.

    Afterwards, also after an exception, the training flag of every submodule, all buffers such as the statistics of
    batch norms, and the random number generators of Python, NumPy and PyTorch (of the CPU and of the GPUs of the
    modules) are what they were. The context begins with the same random numbers every time, so that data sets with
    random transforms give the same images.

    Args:
        *modules: modules; anything else, such as a function, is passed over.

    Example:
        >>> layers = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
        >>> with training_paused(layers):
        ...     print([module.training for module in layers])
        [False, False]
        >>> [module.training for module in layers]
        [True, False]
    """
    parts = {part: None for module in modules if isinstance(module, nn.Module) for part in module.modules()}
    flags = {part: part.training for part in parts}
    buffers = [
        (part, name, buffer, buffer.clone()) for part in parts for name, buffer in part.named_buffers(recurse=False)
    ]
    tensors = [tensor for part in parts for tensor in (*part.parameters(False), *part.buffers(False))]
    with _own_random_numbers(list({tensor.device for tensor in tensors if tensor.is_cuda})):
        try:
            # Not by eval(): a model may do more there than to change its mode, such as to merge weights.
            for part in parts:
                part.training = False
            yield
        finally:
            for part, flag in flags.items():
                part.training = flag
            with torch.no_grad():
                for part, name, buffer, before in buffers:
                    setattr(part, name, buffer)  # a forward pass may have put another tensor in its place
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def _own_random_numbers(gpus: Sequence[torch.device]) -> Iterator[None]:
    """Seed all generators, and give them their states back at the end."""
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002  # transforms of images draw from the global generator
    states = [torch.cuda.get_rng_state(gpu) for gpu in gpus]
    try:
        random.seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002
        torch.default_generator.manual_seed(_SEED)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(_SEED)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for gpu, state in zip(gpus, states, strict=True):
            torch.cuda.set_rng_state(state, gpu)


def without_wrappers(model: Any) -> Any:
    """The model without the wrappers of ``torch.compile``, ``(Distributed)DataParallel`` and Lightning's Fabric.

    The forward pass of ``DistributedDataParallel`` exchanges buffers among the processes, in eval mode too: a process
    that ran it alone would wait for the others. Compiled code would be compiled again for the sizes of the panel.

    Args:
        model: any model.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> without_wrappers(nn.DataParallel(layer)) is layer
        True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ == "_FabricModule":
            model = model.module
        else:
            return model


def check_whole(model: object) -> None:
    """Refuse a model of which each process holds a part only: one process alone cannot run it, and would wait forever.

    Args:
        model: any model.

    Raises:
        ValueError: for a model with sharded parameters, as with FSDP, tensor parallelism or DeepSpeed ZeRO 3.

    Example:
        >>> check_whole(nn.Linear(2, 2))
    """
    if not isinstance(model, nn.Module):
        return
    kinds = {type(module).__name__ for module in model.modules()} & {"FullyShardedDataParallel"}
    kinds |= {type(parameter.data).__name__ for parameter in model.parameters()} & {"DTensor"}
    if kinds or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            f"model is sharded: each process holds a part of its weights ({', '.join(kinds) or 'DeepSpeed ZeRO 3'}), "
            "and one process alone cannot run it; look at its checkpoints with explain(), or train with DDP"
        )
