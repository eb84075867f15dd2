"""Small pictures in the layout of CUB-200-2011."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

N_CLASSES = 8
PER_CLASS = 3
SIZE = (30, 20)


def write_tables(root: Path, boxes: dict[int, str] | None = None) -> Path:
    """CUB's layout: 8 classes of 3 images of 30 x 20; within a class the image number tells the color."""
    names = [f"{c:03d}.Bird_{c}" for c in range(1, N_CLASSES + 1)]
    rows = {"classes": [f"{c} {name}" for c, name in enumerate(names, 1)]}
    for table in ("images", "image_class_labels", "bounding_boxes", "train_test_split"):
        rows[table] = []
    for image_id in range(1, N_CLASSES * PER_CLASS + 1):
        label, number = divmod(image_id - 1, PER_CLASS)
        path = root / "images" / names[label] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (40 * number, 100, 200)).save(path)
        rows["images"].append(f"{image_id} {names[label]}/{number}.jpg")
        rows["image_class_labels"].append(f"{image_id} {label + 1}")
        rows["bounding_boxes"].append(f"{image_id} {(boxes or {}).get(image_id, '3.0 4.0 15.0 10.0')}")
        rows["train_test_split"].append(f"{image_id} {int(number > 0)}")
    for table, lines in rows.items():
        (root / f"{table}.txt").write_text("\n".join(lines) + "\n")
    return root
