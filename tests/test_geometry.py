import pytest
import torch
from PIL import Image
from torchvision import transforms

from captum_fam.geometry import Fit, Pad, ResizeCrop, Squash, box_areas, clip_boxes

WHOLE_AND_CORNER = torch.tensor([[0.0, 0.0, 500.0, 200.0], [250.0, 50.0, 500.0, 150.0]])


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with a white box."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return image


def white_box(image: Image.Image) -> list[int]:
    return list(image.convert("L").point(lambda value: 255 if value > 127 else 0).getbbox())


def test_squash_scales_each_axis_by_its_own_factor():
    boxes = Squash((40, 50)).map_boxes(WHOLE_AND_CORNER, width=500, height=200)
    assert boxes.tolist() == [[0, 0, 50, 40], [25, 10, 50, 30]]


@pytest.mark.parametrize(("width", "height"), [(333, 500), (997, 41), (3, 7)])
def test_a_squashed_box_of_the_whole_image_is_the_whole_square(width, height):
    whole = torch.tensor([[0.0, 0.0, width, height]])
    assert Squash(84).map_boxes(whole, width, height).tolist() == [[0, 0, 84, 84]]


@pytest.mark.parametrize(
    "geometry",
    [
        Squash(120),
        Squash((60, 90), "bicubic"),
        ResizeCrop(100, (80, 100), "nearest"),
        ResizeCrop(None, (100, 90), "lanczos"),
        Fit((200, 120)),
        Pad((150, 110), "box"),
        Pad(90, "hamming"),
    ],
)
def test_boxes_follow_the_pixels(geometry):
    image = marked(400, 300, (160, 100, 240, 200))
    moved, boxes = geometry(image, torch.tensor([[160.0, 100.0, 240.0, 200.0]]))
    assert white_box(moved) == pytest.approx(boxes[0].tolist(), abs=1)


def test_resize_and_crop_worked_by_hand():
    # 500 x 250 -> 512 x 256, the crop of 224 starts at x = 144, y = 16
    boxes = torch.tensor([[250.0, 125.0, 300.0, 150.0], [0.0, 0.0, 500.0, 250.0], [0.0, 0.0, 50.0, 50.0]])
    moved = ResizeCrop(256, 224).map_boxes(boxes, width=500, height=250)
    assert moved[0].tolist() == pytest.approx([256 - 144, 128 - 16, 307.2 - 144, 153.6 - 16])
    assert moved[1].tolist() == [0, 0, 224, 224]
    assert box_areas(moved).tolist()[2] == 0  # cut away, but still in its place


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 331), (256, 256), (641, 257)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_gives_the_pixels_of_torchvision(size, interpolation):
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    theirs = transforms.Compose(
        [transforms.Resize(97, transforms.InterpolationMode(interpolation)), transforms.CenterCrop((80, 85))]
    )(image)
    ours, _ = ResizeCrop(97, (80, 85), interpolation)(image, torch.zeros(0, 4))
    assert ours.size == (85, 80)
    assert ours.tobytes() == theirs.tobytes()


def test_padding_worked_by_hand():
    # 500 x 250 fits in 84 x 84 as 84 x 42, with 21 rows above and below
    boxes = torch.tensor([[0.0, 0.0, 500.0, 250.0], [250.0, 125.0, 500.0, 250.0]])
    assert Pad(84).map_boxes(boxes, width=500, height=250).tolist() == [[0, 21, 84, 63], [42, 42, 84, 63]]
    padded, _ = Pad(84, fill=(1, 2, 3))(Image.new("RGB", (500, 250), (9, 9, 9)), torch.zeros(0, 4))
    assert [padded.getpixel((40, row)) for row in (0, 20, 21, 62, 63)] == [
        (1, 2, 3),
        (1, 2, 3),
        (9, 9, 9),
        (9, 9, 9),
        (1, 2, 3),
    ]
    # An odd row more than an even number of pads: one more below.
    assert Pad(85).filled_by(500, 250) == (0, 21, 85, 63)


def test_fitting_keeps_the_ratio_worked_by_hand():
    # 500 x 250 in height 60 and width 100: the width decides, 100 x 50
    boxes = torch.tensor([[0.0, 0.0, 500.0, 250.0], [250.0, 125.0, 500.0, 250.0]])
    assert Fit((60, 100)).map_boxes(boxes, width=500, height=250).tolist() == [[0, 0, 100, 50], [50, 25, 100, 50]]
    assert Fit(10)(Image.new("RGB", (2000, 3)), torch.zeros(0, 4))[0].size == (10, 1)  # never less than a pixel


def test_a_crop_that_covers_worked_by_hand():
    # 500 x 250 covers 80 x 40 (width x height) as 80 x 40, and a 40 x 40 square as 80 x 40
    whole = torch.tensor([[0.0, 0.0, 500.0, 250.0]])
    assert ResizeCrop(None, (40, 80)).map_boxes(whole, 500, 250).tolist() == [[0, 0, 80, 40]]
    assert ResizeCrop(None, 40).map_boxes(torch.tensor([[125.0, 0.0, 250.0, 250.0]]), 500, 250).tolist() == [
        [0, 0, 20, 40]
    ]


@pytest.mark.parametrize(
    ("geometry", "seen"),
    [
        (Squash((40, 50)), (0, 0, 500, 250)),
        (Fit(100), (0, 0, 500, 250)),
        (Pad(100), (0, -125, 500, 375)),
        (ResizeCrop(125, 100), (150, 24, 350, 224)),  # the corner (75, 12.5) is rounded to (75, 12), in pixels of two
        (ResizeCrop(None, (40, 80)), (0, 0, 500, 250)),
    ],
)
def test_what_is_seen_of_an_image(geometry, seen):
    assert geometry.seen(500, 250) == pytest.approx(seen)


def test_squash_gives_the_pixels_of_torchvision():
    image = Image.fromarray(torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy())
    theirs = transforms.Resize((30, 20))(image)
    assert Squash((30, 20))(image, torch.zeros(0, 4))[0].tobytes() == theirs.tobytes()


def test_no_boxes_stay_no_boxes():
    assert ResizeCrop(20, 10).map_boxes(torch.zeros(0, 4), 40, 30).shape == (0, 4)


def test_clipping_leaves_a_box_beyond_the_border_without_area():
    boxes = torch.tensor([[-5.0, 10.0, 20.0, 99.0], [60.0, 0.0, 70.0, 5.0], [-9.0, -9.0, -1.0, -1.0]])
    clipped = clip_boxes(boxes, width=50, height=40)
    assert clipped[0].tolist() == [0, 10, 20, 40]
    assert box_areas(clipped).tolist() == [600, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Squash(0), "size must be at least one pixel, got 0"),
        (lambda: Squash((3, -1)), "size must be at least one pixel"),
        (
            lambda: Squash(84, "cubic"),
            "interpolation must be one of nearest, bilinear, bicubic, lanczos, box, hamming, got 'cubic'",
        ),
        (lambda: Fit(0), "size must be at least one pixel, got 0"),
        (lambda: Pad((0, 3)), "size must be at least one pixel"),
        (lambda: Pad(3, "cubic"), "interpolation must be one of"),
        (lambda: ResizeCrop(0, 1), "resize must be at least one pixel, got 0"),
        (lambda: ResizeCrop(224, 256), "crop must fit in the resized image, got crop=256 and resize=224"),
    ],
)
def test_an_impossible_geometry_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
