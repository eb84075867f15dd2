"""The image files of a command: reading them by class, and telling which cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from captum_fam._text import printable
from captum_fam.cli.loading import RunOptions
from captum_fam.explanation.reading.supports import PictureSupport, SupportReader
from captum_fam.models import EmbeddingModel


def read_classes(
    classes: Mapping[str, Sequence[Path]],
    option: str,
    net: EmbeddingModel,
    device: str,
    run: RunOptions,
    unreadable: dict[Path, str],
    *,
    keep_images: bool,
) -> PictureSupport:
    """Read images by class as a support, with a progress bar.

    Args:
        classes: files by class.
        option: the option of the files, for messages and the progress bar.
        net: the model.
        device: the device of the model.
        run: the options for the work through the images.
        unreadable: gets the reason for each file that cannot be read.
        keep_images: whether the support keeps the images; else it has their embeddings.

    Raises:
        ValueError: if no image of a class can be read.
    """
    reader = SupportReader(net.model, lambda: net.preprocessing, run.batch_size, torch.device(device), keep_images)
    reasons: dict[Path, str] = {}
    total = sum(map(len, classes.values()))
    with tqdm(total=total, desc=f"reading {option}", unit="image", disable=run.quiet or None) as bar:
        try:
            return reader.of_classes(classes, option, reasons, bar.update)
        finally:
            report_unreadable(reasons, unreadable)


def report_unreadable(reasons: Mapping[Path, str], unreadable: dict[Path, str]) -> None:
    """Print why files cannot be read, and remember it.

    Args:
        reasons: reasons by file.
        unreadable: gets the reasons.
    """
    for path, reason in reasons.items():
        if path not in unreadable:
            tqdm.write(f"captum-fam: {printable(reason, limit=5000)}", file=sys.stderr)
    unreadable.update(reasons)


def paths_as_text(classes: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    """Files by class, as JSON can represent them.

    Args:
        classes: files by class.
    """
    return {name: [str(path) for path in paths] for name, paths in classes.items()}


def counts(classes: Mapping[str, Sequence[Path]]) -> dict[str, int]:
    """The number of files by class, for a page that is mailed and that needs no path of each.

    Args:
        classes: files by class.

    Example:
        >>> counts({"wren": [Path("a.jpg"), Path("b.jpg")]})
        {'wren': 2}
    """
    return {name: len(paths) for name, paths in classes.items()}
