import errno
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.embedding import BatchLoader
from captum_fam.experiments.data.boxed_images import BoxedImage
from captum_fam.experiments.data.cub import CUB200
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.images import UnreadableImageError
from tests.experiments.cub_files import N_CLASSES, PER_CLASS, SIZE, write_tables


@pytest.fixture
def root(tmp_path):
    return write_tables(tmp_path)


def test_an_item_is_an_image_its_class_and_its_boxes(root):
    sample = CUB200(root)[4]
    assert isinstance(sample, BoxedImage)
    assert sample.image.shape == (3, 20, 30)
    assert sample.image.dtype == torch.float32
    assert sample.image[:, 10, 10].tolist() == pytest.approx([40 / 255, 100 / 255, 200 / 255], abs=0.02)
    assert sample.label == 1
    assert sample.boxes.tolist() == [[3, 4, 18, 14]]


@pytest.mark.parametrize(
    ("split", "classes"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("base", [0, 2, 4, 6]),
        ("val", [1, 5]),
        ("novel", [3, 7]),
        ("retrieval-train", [0, 1, 2, 3]),
        ("retrieval-test", [4, 5, 6, 7]),
    ],
)
def test_a_split_is_whole_classes_with_their_labels_in_the_whole_set(root, split, classes):
    dataset = CUB200(root, split)
    assert len(dataset) == PER_CLASS * len(classes)
    assert dataset.labels.unique().tolist() == classes
    assert [dataset[i].label for i in range(len(dataset))] == dataset.labels.tolist()
    assert len(dataset.class_names) == N_CLASSES


def test_train_and_test_follow_the_flag_of_the_data_set(root):
    train, test = CUB200(root, "train"), CUB200(root, "test")
    assert len(train) == 2 * N_CLASSES
    assert {record.path.name for record in train.records} == {"1.jpg", "2.jpg"}
    assert {record.path.name for record in test.records} == {"0.jpg"}


def test_classes_are_counted_by_name_whatever_their_ids(root):
    # ids 1..8 given in reverse order of the names
    lines = (root / "classes.txt").read_text().split()[1::2]
    (root / "classes.txt").write_text("".join(f"{c} {name}\n" for c, name in enumerate(reversed(lines), 1)))
    dataset = CUB200(root)
    assert dataset.class_names == tuple(lines)
    assert dataset.labels[0] == N_CLASSES - 1  # the first image says class 1, now the last name


def test_geometry_moves_image_and_box_and_transform_the_values(root):
    dataset = CUB200(root, geometry=Squash((10, 60)), transform=lambda image: image - 1)
    image, _, boxes = dataset[0]
    assert image.shape == (3, 10, 60)
    assert image.max() <= 0
    assert boxes.tolist() == [[6, 2, 36, 7]]


@pytest.mark.parametrize(("mode", "suffix"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")])
def test_images_of_every_mode_come_out_as_rgb(root, mode, suffix):
    path = CUB200(root).records[0].path
    Image.new("L", SIZE, 77).convert("RGB").convert(mode).save(path, format=suffix)
    image = CUB200(root)[0].image
    assert image.shape == (3, 20, 30)
    assert image.mean().item() == pytest.approx(77 / 255, abs=0.02)


def test_an_orientation_tag_is_ignored_as_the_box_is_drawn_on_stored_pixels(root):
    path = CUB200(root).records[0].path
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", SIZE).save(path, exif=exif)
    assert CUB200(root)[0].image.shape == (3, 20, 30)


def test_a_photograph_is_the_image_before_geometry_and_transform(root):
    dataset = CUB200(root, geometry=Squash(8), transform=lambda image: image - 1)
    path = dataset.records[4].path
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise(SIZE, 90).save(path, exif=exif)
    photograph = dataset.photograph(4)
    assert (photograph.mode, photograph.size) == ("RGB", SIZE)
    with Image.open(path) as stored:
        assert photograph.tobytes() == stored.convert("RGB").tobytes()
    squashed = torch.tensor(np.asarray(photograph.resize((8, 8), Image.Resampling.BILINEAR))).movedim(-1, 0) / 255 - 1
    torch.testing.assert_close(dataset[4].image, squashed)


def test_a_photograph_that_cannot_be_read_is_named(broken):
    with pytest.raises(UnreadableImageError, match=r"1\.jpg: missing: no such file"):
        CUB200(broken).photograph(1)


@pytest.fixture
def broken(tmp_path):
    """Item 1 is missing, 2 is cut off, 3 is no image, 4 has its box outside, 5 sticks out by 2, 6 by half a pixel."""
    write_tables(tmp_path, {5: "40 2 10 10", 6: "20 5 12 5", 7: "20 5 10.5 5"})
    paths = [record.path for record in CUB200(tmp_path).records]
    paths[1].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-200])
    paths[3].write_text("not a photograph")
    return tmp_path


def test_a_check_names_and_counts_every_problem(broken):
    report = CUB200(broken).check()
    assert [(problem.item, problem.kind) for problem in report.problems] == [
        (1, "missing"),
        (2, "corrupt"),
        (3, "corrupt"),
        (4, "box outside"),
        (5, "box clipped"),
    ]
    assert report.counts == {"missing": 1, "corrupt": 2, "box outside": 1, "box clipped": 1}
    assert report.usable == [0, *range(5, 24)]
    lines = str(report).splitlines()
    assert lines[0] == "24 items, 20 usable: 1 missing, 2 corrupt, 1 box outside, 1 box clipped"
    assert "002.Bird_2/1.jpg: box outside: (40.0, 2.0, 50.0, 12.0) in an image of 30 x 20" in lines[4]


def test_a_sound_data_set_has_nothing_wrong(root):
    report = CUB200(root).check()
    assert str(report) == "24 items, 24 usable: nothing wrong"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (1, "1.jpg: missing: no such file"),
        (2, r"2.jpg: corrupt: \S"),
        (3, "0.jpg: corrupt: cannot identify"),
        (4, "1.jpg: box outside: "),
    ],
)
def test_an_unusable_item_raises_with_its_name_and_reason(broken, item, message):
    with pytest.raises(UnreadableImageError, match=message):
        CUB200(broken)[item]


def test_a_box_that_sticks_out_is_cut_at_the_border(broken):
    dataset = CUB200(broken)
    assert dataset[5].boxes.tolist() == [[20, 5, 30, 10]]
    assert dataset[6].boxes.tolist() == [[20, 5, 30, 10]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_skips_unusable_items_and_counts_them(broken, num_workers):
    dataset = CUB200(broken, geometry=ResizeCrop(20, 16))
    loader = BatchLoader(dataset, batch_size=4, num_workers=num_workers, on_error="skip")
    for _ in range(2):  # a second pass counts anew
        batches = list(loader)
        assert [batch.indices.tolist() for batch in batches][:2] == [[0], [5, 6, 7]]
        assert torch.cat([batch.indices for batch in batches]).tolist() == [0, *range(5, 24)]
        assert sorted(loader.skipped) == [1, 2, 3, 4]
        assert "no such file" in loader.skipped[1]
    assert batches[1].labels.tolist() == [1, 2, 2]
    assert batches[1].images.shape == (3, 3, 16, 16)
    # 30 x 20 cropped to x 7..23, y 2..18
    assert batches[1].boxes[2].tolist() == [[0, 2, 11, 12]]


def test_a_loader_raises_unless_told_to_skip(broken):
    with pytest.raises(UnreadableImageError, match="no such file"):
        list(BatchLoader(CUB200(broken, geometry=Squash(8))))
    with pytest.raises(ValueError, match=r"on_error must be .* got 'ignore'"):
        BatchLoader(CUB200(broken), on_error="ignore")


def test_trouble_of_the_machine_is_never_skipped():
    class FailingDisk(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        list(BatchLoader(FailingDisk(), on_error="skip"))


def test_a_batch_of_nothing_but_unusable_items_is_left_out(broken):
    loader = BatchLoader(CUB200(broken), indices=[1, 2, 3, 4], batch_size=2, on_error="skip")
    assert list(loader) == []
    assert len(loader.skipped) == 4


def test_a_loader_reads_the_items_asked_for_in_their_order(root):
    (batch,) = BatchLoader(CUB200(root), indices=[20, 3, 5])
    assert batch.indices.tolist() == [20, 3, 5]
    assert batch.labels.tolist() == [6, 1, 1]


def test_a_loader_leaves_the_global_random_state_alone(root):
    torch.manual_seed(3)
    list(BatchLoader(CUB200(root)))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)


def test_images_of_different_sizes_ask_for_a_geometry(root):
    dataset = CUB200(root)
    Image.new("RGB", (25, 25)).save(dataset.records[1].path)
    with pytest.raises(ValueError, match=r"different shapes.*give it a geometry"):
        list(BatchLoader(dataset))


def test_a_missing_table_is_named(root):
    (root / "bounding_boxes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes.txt is missing; root must be the folder"):
        CUB200(root)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("images.txt", lambda text: text + "25\n", "images.txt, line 25: expected a new id and 1 column"),
        ("bounding_boxes.txt", lambda text: text.replace("24 3.0 4.0", "24 3.0"), "line 24: expected a new id and 4"),
        ("bounding_boxes.txt", lambda text: text.replace("24 3.0", "24 x"), "image 24 has no numbers"),
        ("train_test_split.txt", lambda text: text.replace("24 1\n", ""), "do not list the same images: 24"),
        (
            "image_class_labels.txt",
            lambda text: text.replace("24 8", "24 9"),
            "image_class_labels.txt: class 9 of image 24",
        ),
        ("images.txt", lambda text: text.replace("2 001", "1 001", 1), "line 2: expected a new id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(root, table, change, message):
    (root / table).write_text(change((root / table).read_text()))
    with pytest.raises(ValueError, match=message):
        CUB200(root)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ValueError, match=r"split must be one of all, train, .*, got 'validation'"):
        CUB200(root, "validation")


@pytest.fixture
def cub50(shared_folder):
    return shared_folder / "data" / "cub50"


def test_the_splits_of_the_real_photographs(cub50):
    sizes = {split: len(CUB200(cub50, split)) for split in ("all", "base", "val", "novel", "retrieval-test")}
    assert sizes["all"] == sizes["base"] + sizes["val"] + sizes["novel"] == 2889
    novel = CUB200(cub50, "novel")
    ids = [int(novel.class_names[label][:3]) for label in novel.labels.unique().tolist()]
    assert ids == list(range(4, 51, 4))
    assert {int(record.path.parent.name[:3]) for record in CUB200(cub50, "retrieval-train").records} == set(
        range(1, 26)
    )


def test_the_box_of_a_real_photograph_is_that_of_its_table(cub50):
    dataset = CUB200(cub50)
    image, label, boxes = dataset[0]
    assert label == 0
    assert boxes[0].tolist() == pytest.approx([45.8, 20.6, 45.8 + 248.3, 20.6 + 232.3], abs=1e-3)
    height, width = image.shape[1:]
    squashed = CUB200(cub50, geometry=Squash(84))[0].boxes
    assert squashed[0].tolist() == pytest.approx(
        [45.8 * 84 / width, 20.6 * 84 / height, 294.1 * 84 / width, 252.9 * 84 / height], abs=1e-3
    )


def test_a_check_of_real_photographs_finds_boxes_that_stick_out(cub50):
    dataset = CUB200(cub50)
    dataset.records = [record for record in dataset.records if record.path.name[:5] in ("Chuck", "Spott")]
    report = dataset.check()
    assert report.counts == {"box clipped": 3}
    assert report.usable == list(range(len(dataset)))


def test_a_part_of_the_data_set_is_read_where_it_is(root, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert CUB200(moved)[0].image.equal(CUB200(root)[0].image)


def test_an_image_of_16_bits_keeps_its_brightness(root):
    path = CUB200(root).records[0].path
    Image.fromarray(np.full((SIZE[1], SIZE[0]), 257 * 77, dtype=np.uint16)).save(path, format="PNG")
    torch.testing.assert_close(CUB200(root)[0].image, torch.full((3, 20, 30), 77 / 255))
    assert CUB200(root).check().problems == ()


def test_a_check_names_what_no_model_can_be_shown(root):
    paths = [record.path for record in CUB200(root).records]
    Image.fromarray(np.ones((SIZE[1], SIZE[0]), dtype=np.float32)).save(paths[0], format="TIFF")
    paths[1].unlink()
    os.mkfifo(paths[1])
    paths[2].unlink()
    paths[2].symlink_to(paths[2].name)
    assert [
        (problem.item, problem.kind, problem.detail.split(";")[0]) for problem in CUB200(root).check().problems
    ] == [
        (0, "corrupt", "floating-point pixels of unknown range"),
        (1, "corrupt", "a named pipe, expected an image file"),
        (2, "corrupt", f"[Errno 40] Too many levels of symbolic links: '{paths[2]}'"),
    ]


def test_trouble_of_the_machine_with_an_image_is_raised_and_never_skipped(root, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("captum_fam.images.as_rgb", fail)
    dataset = CUB200(root, geometry=Squash(8))
    with pytest.raises(OSError, match="Input/output error"):
        dataset.check()
    with pytest.raises(OSError, match="Input/output error"):
        list(BatchLoader(dataset, on_error="skip"))
