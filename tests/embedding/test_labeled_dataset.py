"""Whatever people have as a labeled data set becomes images and class indices, or is refused in clear words."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from captum_fam.embedding.labeled_dataset import LabeledDataset, find_class_names, take_loader_apart
from captum_fam.images import image_to_tensor

IMAGES = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
BIRDS = ["wren", "jay", "wren", "tit", "jay"]


class Named(Dataset[tuple[Tensor, int]]):
    """Five images with labels and names, as torchvision has them."""

    classes = ("jay", "tit", "wren")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index], self.classes.index(BIRDS[index])


def as_lists(dataset: LabeledDataset) -> list[int]:
    """The labels of all items; the images are checked."""
    items = [dataset[index] for index in range(len(dataset))]
    assert all(isinstance(image, Tensor) and image.shape == (3, 4, 6) for image, *_ in items)
    return [label for _, label, *_ in items]


def picture(value: int, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (6, 4), (value, 0, 0)).convert(mode)


def test_tuples_with_labels_of_any_whole_numbers() -> None:
    labels = [3, np.int16(-1), torch.tensor(2**40), np.array(7), torch.tensor(0, dtype=torch.uint8)]
    dataset = LabeledDataset([(image, label) for image, label in zip(IMAGES, labels, strict=True)])
    assert as_lists(dataset) == [3, -1, 2**40, 7, 0]
    assert dataset.class_names is None
    assert torch.equal(dataset[4][0], IMAGES[4])


def test_what_follows_the_label_stays() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert LabeledDataset([(IMAGES[0], 0, boxes)])[0][2] is boxes


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("image_key", ["image", "img", "pixel_values"])
@pytest.mark.parametrize("label_key", ["label", "labels", "target"])
def test_dictionaries_by_their_usual_keys(kind: Any, image_key: str, label_key: str) -> None:
    items = [kind({"id": index, image_key: image, label_key: index % 2}) for index, image in enumerate(IMAGES)]
    assert as_lists(LabeledDataset(items)) == [0, 1, 0, 1, 0]


def test_dictionaries_by_other_keys() -> None:
    items = [{"photo": image, "label": 9, "species": bird} for image, bird in zip(IMAGES, BIRDS, strict=True)]
    dataset = LabeledDataset(items, image_key="photo", label_key="species")
    assert dataset.class_names == ("jay", "tit", "wren")
    assert as_lists(dataset) == [2, 0, 2, 1, 0]
    for given, message in (
        ({}, "keys photo, label, species, and none of pixel_values, image, img; .* image_key="),
        ({"image_key": "photo", "label_key": "bird"}, "no 'bird'; .* label_key="),
    ):
        with pytest.raises(ValueError, match=message):
            LabeledDataset(items, **given)


def test_the_message_of_a_wrong_item_names_the_first_item_that_can_be_read() -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index < 2:
                raise OSError("truncated")
            return super().__getitem__(index)

    with pytest.raises(TypeError, match="item 2 is a int"):
        LabeledDataset(Broken([None, None, 7, 7]))


def test_names_as_labels_are_numbered_in_the_order_of_the_names() -> None:
    items = list(zip(IMAGES, map(np.str_, BIRDS), strict=True))
    assert LabeledDataset(items).class_names == ("jay", "tit", "wren")
    assert as_lists(LabeledDataset(items)) == [2, 0, 2, 1, 0]
    dataset = LabeledDataset(items, class_names=["wren", "owl", "tit", "jay"])
    assert as_lists(dataset) == [0, 3, 0, 2, 3]
    with pytest.raises(ValueError, match="label of item 3, 'tit', is none of the class names"):
        as_lists(LabeledDataset(items, class_names=["wren", "jay"]))


def test_a_subset_has_the_names_of_what_it_is_a_subset_of() -> None:
    subset = Subset(Subset(Named(), [4, 3, 2, 0]), [0, 2, 3])
    dataset = LabeledDataset(subset)
    assert dataset.class_names == ("jay", "tit", "wren")
    assert as_lists(dataset) == [0, 2, 2]
    assert LabeledDataset(ConcatDataset([subset, Named()])).class_names == ("jay", "tit", "wren")


def test_parts_with_other_classes_are_refused_because_a_label_means_two_things() -> None:
    other = Named()
    other.classes = ("owl", "tit", "wren", "jay")
    with pytest.raises(ValueError, match="parts of the ConcatDataset have different classes"):
        LabeledDataset(ConcatDataset([Named(), other]))
    assert LabeledDataset(ConcatDataset([Named(), other]), class_names=list("abcd")).class_names == tuple("abcd")


def test_names_of_several_words_are_joined() -> None:
    source = Named()
    source.classes = (("tench", "Tinca tinca"), ("goldfish",), ("jay",))  # type: ignore[assignment]
    assert find_class_names(source) == ("tench, Tinca tinca", "goldfish", "jay")


class HuggingFace:
    """What a data set of Hugging Face looks like: columns, and items that are dictionaries."""

    def __init__(self, label_names: list[str] | None) -> None:
        self.column_names = ["image", "label"]
        names = type("ClassLabel", (), {"names": label_names}) if label_names else object
        self.features = {"image": object(), "label": names()}
        self.labels_are_names = label_names is None
        self.images_read = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        labels = BIRDS if self.labels_are_names else [sorted(set(BIRDS)).index(bird) for bird in BIRDS]
        if index == "label":
            return labels
        self.images_read += 1
        return {"image": picture(50 * index), "label": labels[index]}


@pytest.mark.parametrize("with_names", [False, True])
def test_a_data_set_of_hugging_face_is_read_once_and_has_its_names(with_names: bool) -> None:
    source = HuggingFace(sorted(set(BIRDS)) if with_names else None)
    dataset = LabeledDataset(source, preprocess=image_to_tensor)
    assert source.images_read == 1
    assert dataset.class_names == ("jay", "tit", "wren")
    assert as_lists(dataset) == [2, 0, 2, 1, 0]
    assert torch.equal(dataset[3][0][0], torch.full((4, 6), 150 / 255))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_pictures_are_made_tensors_of_by_preprocess(mode: str) -> None:
    dataset = LabeledDataset([(picture(200, mode), 0)], preprocess=image_to_tensor)
    image, _ = dataset[0]
    assert image.shape == (3, 4, 6)
    red = picture(200, mode).convert("RGB").getpixel((0, 0))[0]  # type: ignore[index]
    assert image[0].mean() * 255 == pytest.approx(red, abs=2)
    with pytest.raises(ValueError, match="image of item 0 is no tensor but a picture; pass preprocess="):
        LabeledDataset([(picture(0, mode), 0)])


def test_arrays_and_paths_are_pictures_too(tmp_path: Path) -> None:
    picture(102).save(tmp_path / "one.png")
    array = np.full((4, 6, 3), 51, dtype=np.uint8)
    items = [(array, 0), (str(tmp_path / "one.png"), 0), (tmp_path / "one.png", 1), (IMAGES[0].numpy(), 1)]
    dataset = LabeledDataset(items, preprocess=image_to_tensor)
    assert [float(dataset[index][0][0, 0, 0]) for index in range(3)] == pytest.approx([0.2, 0.4, 0.4])
    assert torch.equal(dataset[3][0], IMAGES[0])


def test_tensors_go_through_preprocess_only_if_asked() -> None:
    items = [(IMAGES[0], 0)]
    assert torch.equal(LabeledDataset(items, preprocess=lambda image: image / 2)[0][0], IMAGES[0])
    halved = LabeledDataset(items, preprocess=lambda image: image / 2, on_tensors=True)
    assert torch.equal(halved[0][0], IMAGES[0] / 2)


def test_class_folders_by_their_path(tmp_path: Path) -> None:
    for name in ("wren/b.png", "wren/a.png", "jay/c.png", ".hidden/d.png", "owl/notes.txt", "jay/.e.png", "f.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        picture(ord(path.stem[-1])).save(path) if path.suffix == ".png" else path.write_text("no image")
    for folder in (str(tmp_path), tmp_path):
        dataset = LabeledDataset(folder, preprocess=image_to_tensor)
        assert dataset.class_names == ("jay", "wren")
        assert as_lists(dataset) == [0, 1, 1]
        values = [round(float(dataset[index][0][0, 0, 0]) * 255) for index in range(3)]
        assert values == list(map(ord, "cab"))
        assert [record.path.name for record in dataset.records] == ["c.png", "a.png", "b.png"]


def test_folders_that_hold_no_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        LabeledDataset(tmp_path / "nowhere")
    picture(0).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="1 images that are in no class folder; expected one folder of images per"):
        LabeledDataset(tmp_path)


def test_a_loader_gives_its_data_set_in_order() -> None:
    dataset = TensorDataset(IMAGES, torch.arange(5))
    for loader in (DataLoader(dataset, 2, num_workers=1), DataLoader(dataset, 2, shuffle=True, drop_last=True)):
        parts = take_loader_apart(loader)
        assert parts.batch_size == 2
        assert parts.collate is None
        assert as_lists(LabeledDataset(parts.dataset)) == [0, 1, 2, 3, 4]
    assert take_loader_apart(DataLoader(dataset, 2, num_workers=1)).num_workers == 1
    assert take_loader_apart(DataLoader(dataset, batch_size=None)).batch_size == 64


def test_the_collate_function_of_a_loader_makes_the_items() -> None:
    def collate(items: list[Any]) -> dict[str, Any]:
        return {"pixel_values": torch.stack([image for image, _ in items]) * 2, "labels": [bird for _, bird in items]}

    loader = DataLoader(list(zip(IMAGES, BIRDS, strict=True)), 2, collate_fn=collate)  # type: ignore[arg-type]
    parts = take_loader_apart(loader)
    dataset = LabeledDataset(parts.dataset, collate=parts.collate)
    assert as_lists(dataset) == [2, 0, 2, 1, 0]
    assert torch.equal(dataset[3][0], IMAGES[3] * 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": WeightedRandomSampler([1, 1, 1, 1, 1], 5)}, "WeightedRandomSampler"),
        ({"sampler": RandomSampler(range(5), replacement=True)}, "RandomSampler"),
        ({"sampler": RandomSampler(range(5), num_samples=3)}, "RandomSampler"),
        ({"sampler": [0, 2]}, "list"),
        ({"batch_sampler": type("Pairs", (BatchSampler,), {})(SequentialSampler(range(5)), 2, False)}, "Pairs"),
    ],
)
def test_a_loader_that_may_leave_items_out_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"by a {named}, which may leave out or repeat items"):
        take_loader_apart(DataLoader(TensorDataset(IMAGES, torch.arange(5)), **options))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(IMAGES, BIRDS, strict=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Stream(), "Stream is an IterableDataset"),
        ({"train": Named(), "test": Named()}, r"keys 'train', 'test'; pass one of its data sets"),
        (iter([1]), "got list_iterator"),
        (5, "got int"),
    ],
)
def test_what_has_no_positions_is_refused(source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LabeledDataset(source)
    if isinstance(source, IterableDataset):
        with pytest.raises(TypeError, match=message):
            take_loader_apart(DataLoader(source))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (IMAGES[0], "item 0 is a Tensor"),
        ((IMAGES[0],), "item 0 is a tuple of 1"),
        ((IMAGES[0], 0.5), "that of item 0 is 0.5"),
        ((IMAGES[0], None), "that of item 0 is None"),
        ((IMAGES[0], torch.tensor([0, 1])), r"that of item 0 is of shape \(2,\)"),
        ((None, 0), "image of item 0 is a NoneType"),
        (({"x": 1}, 0), "image of item 0 is a dict"),
    ],
)
def test_items_without_image_or_label_are_refused_at_once(item: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LabeledDataset([item])


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1, np.uint64(2**63), torch.tensor(2**40).item() * 2**40])
def test_a_label_that_is_too_large_is_named_with_its_item(label: Any) -> None:
    dataset = LabeledDataset([(torch.zeros(3, 4, 5), 2**63 - 1), (torch.zeros(3, 4, 5), label)])
    assert dataset[0][1] == 2**63 - 1
    with pytest.raises(ValueError, match=rf"the label of item 1, {int(label)}, is too large"):
        dataset[1]
