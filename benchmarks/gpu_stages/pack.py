"""Packs photographs for the GPU machine: smaller JPEG files in folders of the same form, with their boxes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from PIL import Image

from benchmarks.gpu_stages.environment import wheels

MOST_MIB = 50
_SHORTER_SIDE = 136
_QUALITY = 85


def pack(shared: Path, out: Path) -> float:
    """Write the folder of packed data and the list of wheels.

    Args:
        shared: folder with ``data/cub50`` and ``data/imagenet1300``; what is missing is left out.
        out: folder to write, in place of an earlier one.

    Returns:
        Its size in MiB.

    Raises:
        ValueError: if ``out`` is a folder that this command has not written, or if the data are more than 50 MiB.
    """
    if out.exists() and not (out / "wheels.txt").exists():
        raise ValueError(f"{out} is there and is no pack; choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "wheels.txt").write_text("\n".join(wheels()) + "\n", encoding="utf-8")
    if (shared / "data" / "cub50").is_dir():
        _pack_cub(shared / "data" / "cub50", out / "cub50")
    if (shared / "data" / "imagenet1300").is_dir():
        _pack_imagenet(shared / "data" / "imagenet1300", out / "imagenet1300")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20
    if size > MOST_MIB:
        raise ValueError(f"{out} has {size:.0f} MiB, and {MOST_MIB} are the most that a GPU machine takes")
    return size


def _shrink(source: Path, target: Path) -> float:
    """Write a smaller image, and give the factor of its sides."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        photograph = image.convert("RGB")
    factor = min(1.0, _SHORTER_SIDE / min(photograph.size))
    width, height = (max(1, round(factor * side)) for side in photograph.size)
    photograph.resize((width, height), Image.Resampling.BICUBIC).save(target, "JPEG", quality=_QUALITY)
    return factor


def _pack_cub(source: Path, target: Path) -> None:
    factors = {}
    for line in (source / "images.txt").read_text(encoding="utf-8").splitlines():
        number, name = line.split()
        factors[number] = _shrink(source / "images" / name, target / "images" / name)
    for table in ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"):
        shutil.copyfile(source / table, target / table)
    boxes = []
    for line in (source / "bounding_boxes.txt").read_text(encoding="utf-8").splitlines():
        number, *edges = line.split()
        boxes.append(" ".join([number, *(f"{factors[number] * float(edge):.2f}" for edge in edges)]))
    (target / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n", encoding="utf-8")


def _pack_imagenet(source: Path, target: Path) -> None:
    with (source / "LOC_val_solution.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = {path.stem: path for path in (source / "images").iterdir()}
    for row in rows:
        path = images[row["ImageId"]]
        factor = _shrink(path, target / "images" / path.name)
        words = row["PredictionString"].split()
        # A class and four edges in whole pixels for every box.
        row["PredictionString"] = " ".join(
            word if place % 5 == 0 else str(round(factor * float(word))) for place, word in enumerate(words)
        )
    with (target / "LOC_val_solution.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["ImageId", "PredictionString"])
        writer.writeheader()
        writer.writerows(rows)
