import pytest
import torch
from PIL import Image
from torchvision import transforms

from captum_fam.geometry import ResizeCrop, Squash, box_areas, clip_boxes

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


@pytest.mark.parametrize("geometry", [Squash(120), Squash((60, 90), "bicubic"), ResizeCrop(100, (80, 100), "nearest")])
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
        (lambda: Squash(84, "cubic"), "interpolation must be one of nearest, bilinear, bicubic, got 'cubic'"),
        (lambda: ResizeCrop(224, 256), "crop must fit in the resized image, got crop=256 and resize=224"),
    ],
)
def test_an_impossible_geometry_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
