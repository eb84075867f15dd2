"""The memory bank in a checkpoint of lemniscate (NPID, Wu et al., CVPR 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam.models.inert_values import Record
from captum_fam.models.weights_file import WeightsError, read_checkpoint, weights_in_words
from captum_fam.support.memory_bank import MemoryBank


def read_memory_bank(path: str | Path, labels: str | Path | Tensor | Sequence[int], **options: Any) -> MemoryBank:
    """Read the memory bank that a lemniscate checkpoint holds beside the network, and label the rows of the bank.

    Row i belongs to item i of torchvision's ``ImageFolder`` of the training images, in which the classes follow one
    another, sorted by name. The rows are moving averages over augmented views of the images, as the training left them.
    They differ from the embeddings of the images themselves.

    Args:
        path: the checkpoint, such as ``lemniscate_resnet50.pth``. No code of the file is run.
        labels: the folder of the training images, with one folder per class; or a text file with one line per class,
            the name of the class and its number of images, in the order of the rows; or the class index of each row.
        options: ``k``, ``temperature``, ``similarity``, ``neighbors`` and ``backend`` of
            :class:`~captum_fam.support.memory_bank.MemoryBank`. Default: the temperature in the file, and the defaults
            of the class for the others.

    Returns:
        The bank, with the names of the classes if ``labels`` has names.

    Raises:
        WeightsError: (a ``ValueError``) if the file cannot be read, names anything that could run, or holds no bank.
        ValueError: if there are not as many labels as rows, or the classes are not sorted by name.
        FileNotFoundError: if ``labels`` names no folder or file.

    Example:
        >>> net = create_model("npid_resnet50", weights="lemniscate_resnet50.pth")
        >>> bank = read_memory_bank("lemniscate_resnet50.pth", labels="imagenet/train")
        >>> attributions = LayerFAM(net.model, net.layer).attribute(images, support=bank)
    """
    path = Path(path)
    memory, temperature = _find_bank(read_checkpoint(path), weights_in_words(path))
    class_names: Sequence[str] | None = None
    source = "labels"
    if isinstance(labels, str | Path):
        source = str(labels)
        labels, class_names = _read_labels(Path(labels))
    if len(labels) != len(memory):
        raise ValueError(
            f"labels: {source} has {len(labels)} images but the bank of {path} has {len(memory)} rows; "
            "give the images that the bank was trained on"
        )
    return MemoryBank(memory, labels, class_names, **{"temperature": temperature, **options})


def _find_bank(checkpoint: Any, source: str) -> tuple[Tensor, float]:
    """The rows of the bank, ``(rows, J)``, and its temperature."""
    # The published files hold the NCEAverage of lemniscate as a whole object, newer files as a state dict.
    average = checkpoint.get("lemniscate") if isinstance(checkpoint, Mapping) else None
    buffers = vars(average).get("_buffers") if isinstance(average, Record) else average
    memory = buffers.get("memory") if isinstance(buffers, Mapping) else None
    params = buffers.get("params") if isinstance(buffers, Mapping) else None
    if not isinstance(memory, Tensor) or not isinstance(params, Tensor):
        raise WeightsError(
            f"{source} hold no memory bank of lemniscate; make one of the training images with MemoryBank.from_dataset"
        )
    if memory.dim() != 2 or not memory.is_floating_point() or not memory.isfinite().all():
        raise WeightsError(
            f"{source} hold a memory bank {tuple(memory.shape)} of {memory.dtype}, expected (rows, J) of finite "
            "floating-point numbers"
        )
    # The numbers in params are negatives, temperature, normalization and momentum in an NCEAverage, and temperature and
    # momentum in a LinearAverage.
    if params.shape not in ((4,), (2,)) or not params.is_floating_point():
        raise WeightsError(f"{source} hold {tuple(params.shape)} parameters of a memory bank, expected 4 or 2")
    temperature = round(float(params[1 if len(params) == 4 else 0]), 6)
    if not 0 < temperature < math.inf:
        raise WeightsError(f"{source} hold a memory bank of temperature {temperature:g}, expected a positive number")
    return memory, temperature


def _read_labels(path: Path) -> tuple[Tensor, list[str]]:
    """The class index of each row, int64 ``(rows,)``, and the names of the classes."""
    if path.is_dir():
        # Imported here, because the import of torchvision takes a second, and few callers give a folder.
        from torchvision.datasets import ImageFolder

        folder = ImageFolder(str(path))
        return torch.tensor(folder.targets), folder.classes
    if not path.is_file():
        raise FileNotFoundError(f"labels {path}: no such folder or file")
    names, counts = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        if words := line.replace(",", " ").split():
            if len(words) != 2 or not words[1].isdigit():
                raise ValueError(f"labels {path}: expected lines of a class name and a number of images, got {line!r}")
            names.append(words[0])
            counts.append(int(words[1]))
    if names != sorted(set(names)):
        raise ValueError(f"labels {path}: the classes must be sorted by name, as the rows of the bank are")
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)), names
