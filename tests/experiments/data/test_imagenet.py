import json
from pathlib import Path

import pytest
from PIL import Image

from captum_fam.embedding import BatchLoader
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.geometry import Squash
from captum_fam.images import UnreadableImageError

WOLF, APPLE = "n02114367", "n07739125"
NAMES = [f"ILSVRC2012_val_0000000{i}" for i in range(1, 6)]
# image -> class and boxes; sizes are 50 x 40
TRUTH = {
    NAMES[0]: (WOLF, [(5, 4, 25, 34)]),
    NAMES[1]: (APPLE, [(0, 0, 10, 10), (20, 10, 50, 40), (1, 30, 9, 39)]),
    NAMES[2]: (WOLF, [(10, 10, 20, 20), (12, 5, 40, 30)]),
}


def xml(wnid: str, boxes, size=(50, 40), head="") -> str:
    objects = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return (
        f"{head}<annotation><folder>val</folder><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def write_images(folder: Path, names=tuple(TRUTH)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (50, 40), (120, 130, 140)).save(folder / f"{name}.JPEG", format="JPEG")
    return folder


def write_xml(folder: Path, truth=TRUTH) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (wnid, boxes) in truth.items():
        (folder / f"{name}.xml").write_text(xml(wnid, boxes))
    return folder


def write_csv(path: Path, truth=TRUTH) -> Path:
    lines = ["ImageId,PredictionString"]
    # the file is not sorted, and every group ends with a blank
    for name, (wnid, boxes) in reversed(truth.items()):
        lines.append(f"{name}," + "".join(f"{wnid} {' '.join(map(str, box))} " for box in boxes))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["xml", "csv"])
def form(request):
    return {"xml": lambda folder: write_xml(folder / "boxes"), "csv": lambda folder: write_csv(folder / "LOC.csv")}[
        request.param
    ]


def test_both_forms_give_all_boxes_of_an_image(tmp_path, form):
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), form(tmp_path))
    assert [record.path.stem for record in dataset.records] == NAMES[:3]
    assert dataset.class_names == (WOLF, APPLE)
    assert dataset.labels.tolist() == [0, 1, 0]
    for i, (wnid, boxes) in enumerate(TRUTH.values()):
        image, label, found = dataset[i]
        assert image.shape == (3, 40, 50)
        assert dataset.class_names[label] == wnid
        assert found.tolist() == [list(map(float, box)) for box in boxes]


def test_images_in_class_folders_and_annotations_in_a_folder_below_are_found(tmp_path):
    for name, (wnid, _) in TRUTH.items():
        write_images(tmp_path / "val" / wnid, [name])
    write_xml(tmp_path / "boxes" / "val")
    dataset = ImageNetBoxes(tmp_path / "val", tmp_path / "boxes")
    assert [record.path.stem for record in dataset.records] == NAMES[:3]  # by image, not by class
    assert len(dataset[1].boxes) == 3


def test_boxes_follow_the_geometry_in_a_batch_of_images_with_different_numbers_of_them(tmp_path, form):
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), form(tmp_path), geometry=Squash((80, 25)))
    (batch,) = BatchLoader(dataset)
    assert batch.images.shape == (3, 3, 80, 25)
    assert [len(boxes) for boxes in batch.boxes] == [1, 3, 2]
    assert batch.boxes[2].tolist() == [[5, 20, 10, 40], [6, 10, 20, 60]]


def test_inclusive_coordinates_add_the_last_pixel(tmp_path, form):
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), form(tmp_path), inclusive=True)
    assert dataset[0].boxes.tolist() == [[5, 4, 26, 35]]


def test_given_classes_set_the_class_indices(tmp_path, form):
    classes = ["n00000001", APPLE, WOLF]
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), form(tmp_path), classes)
    assert dataset.labels.tolist() == [2, 1, 2]
    assert dataset.class_names == tuple(classes)


def test_a_few_images_keep_the_class_indices_of_the_whole_set(tmp_path, form):
    dataset = ImageNetBoxes(write_images(tmp_path / "val", [NAMES[1]]), form(tmp_path))
    assert dataset.labels.tolist() == [1]


def test_what_does_not_fit_together_is_named_and_counted(tmp_path, form):
    images = write_images(tmp_path / "val", [NAMES[0], NAMES[2], NAMES[3]])
    dataset = ImageNetBoxes(images, form(tmp_path))
    report = dataset.check()
    assert report.counts == {"missing": 1, "annotation": 1}
    assert [(problem.item, problem.path.stem) for problem in report.problems] == [(None, NAMES[1]), (2, NAMES[3])]
    assert report.usable == [0, 1]
    with pytest.raises(UnreadableImageError, match=f"{NAMES[3]}.JPEG: annotation: no annotation"):
        dataset[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation><size>", "no element found|unclosed"),
        ("", "no element found"),
        (xml(WOLF, []), "expected boxes of one class, got no box"),
        (xml(WOLF, [(1, 2, "x", 4)]), "could not convert string to float: 'x'"),
        (xml(WOLF, [(1, 2, 3, 4)]).replace("<ymax>4</ymax>", ""), "no <bndbox/ymax>"),
        (xml(WOLF, [(1, 2, 3, 4)]).replace("<size>", "<sizes>").replace("</size>", "</sizes>"), "no <size/width>"),
        (
            xml(WOLF, [(1, 2, 3, 4), (5, 6, 7, 8)]).replace(WOLF, APPLE, 1),
            f"expected boxes of one class, got {WOLF}, {APPLE}",
        ),
        (xml(WOLF, [(1, 2, 3, 4)], head="<!DOCTYPE annotation>"), "a DOCTYPE is not allowed"),
        (
            xml("&lol;", [(1, 2, 3, 4)], head='<!DOCTYPE annotation [<!ENTITY lol "n02114367">]>'),
            "a DOCTYPE is not allowed",
        ),
        (xml(WOLF, [(1, 2, 3, 4)], head='<?xml version="1.0" encoding="no-such"?>'), "unknown encoding"),
    ],
)
def test_a_broken_xml_file_is_a_named_problem_of_its_image(tmp_path, text, reason):
    boxes = write_xml(tmp_path / "boxes")
    (boxes / f"{NAMES[1]}.xml").write_text(text)
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), boxes, [WOLF, APPLE])
    assert dataset.check().counts == {"annotation": 1}
    with pytest.raises(UnreadableImageError, match=rf"{NAMES[1]}.JPEG: annotation: .*({reason})"):
        dataset[1]
    assert dataset[2].label == 0


@pytest.mark.parametrize("string", [f"{WOLF} 1 2 3", f"{WOLF} 1 2 3 four", "", f"{WOLF} 1 2 3 4 {APPLE} 1 2 3 4"])
def test_a_broken_row_of_the_csv_is_a_named_problem_of_its_image(tmp_path, string):
    csv = write_csv(tmp_path / "LOC.csv")
    lines = [line for line in csv.read_text().splitlines() if NAMES[1] not in line]
    csv.write_text("\n".join([*lines, f"{NAMES[1]},{string}"]))
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), csv, [WOLF, APPLE])
    with pytest.raises(UnreadableImageError, match=rf"{NAMES[1]}.JPEG: annotation: expected "):
        dataset[1]


def test_boxes_drawn_on_another_size_are_refused(tmp_path):
    boxes = write_xml(tmp_path / "boxes")
    (boxes / f"{NAMES[0]}.xml").write_text(xml(WOLF, [(1, 2, 3, 4)], size=(500, 400)))
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), boxes)
    with pytest.raises(UnreadableImageError, match=r"drawn on \(500, 400\) pixels, the image has \(50, 40\)"):
        dataset[0]


def test_a_class_that_is_not_among_the_given_ones_is_named(tmp_path, form):
    dataset = ImageNetBoxes(write_images(tmp_path / "val"), form(tmp_path), [APPLE])
    assert dataset.check().counts == {"annotation": 2}
    with pytest.raises(UnreadableImageError, match=f"class {WOLF} is none of the 1 classes"):
        dataset[0]


def test_nothing_to_read_is_an_error_at_once(tmp_path):
    images = write_images(tmp_path / "val")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("image,boxes\n")
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        ImageNetBoxes(tmp_path / "empty", write_xml(tmp_path / "boxes"))
    with pytest.raises(FileNotFoundError, match="empty: no XML files"):
        ImageNetBoxes(images, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="neither a folder of XML files nor a CSV file"):
        ImageNetBoxes(images, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected the columns ImageId and PredictionString"):
        ImageNetBoxes(images, tmp_path / "other.csv")


@pytest.mark.parametrize(("size", "shape", "column"), [((50, 40), (3, 40, 50), 49), ((40, 50), (3, 50, 40), 39)])
def test_a_turned_image_has_the_turn_that_its_boxes_have(tmp_path, size, shape, column):
    images = write_images(tmp_path / "val", NAMES[:1])
    stored = Image.new("RGB", (50, 40))
    stored.paste((255, 255, 255), (0, 0, 10, 5))  # the left upper corner, which a quarter turn to the right moves right
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(images / f"{NAMES[0]}.JPEG", exif=exif, quality=100)
    corner = (0, 0, 10, 5) if size == (50, 40) else (35, 0, 40, 10)
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / f"{NAMES[0]}.xml").write_text(xml(WOLF, [corner], size=size))
    image, _, (box,) = ImageNetBoxes(images, boxes)[0]
    assert image.shape == shape
    x0, y0, x1, y1 = box.int().tolist()
    assert image[:, y0:y1, x0:x1].mean() > 0.95
    assert image.sum() == pytest.approx(3 * 10 * 5, rel=0.05)


def test_results_and_hidden_folders_below_the_images_are_no_items(tmp_path):
    images = write_images(tmp_path / "val")
    boxes = write_xml(tmp_path / "boxes")
    before = [record.path for record in ImageNetBoxes(images, boxes).records]
    write_images(images / ".thumbnails", ("thumbnail",))
    for folder in (images / "out", images):
        write_images(folder, ("examples",))
        (folder / "run.json").write_text(json.dumps({"protocol": "few-shot", "conventions": {}}))
    assert [record.path for record in ImageNetBoxes(images, boxes).records] == before


def test_two_images_of_one_name_are_refused(tmp_path):
    images = write_images(tmp_path / "val")
    write_images(images / "old", NAMES[:1])
    with pytest.raises(ValueError, match=rf"old/{NAMES[0]}\.JPEG and .*val/{NAMES[0]}\.JPEG have one name"):
        ImageNetBoxes(images, write_xml(tmp_path / "boxes"))
