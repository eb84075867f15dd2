import pytest
import torch
from torch.utils.data import DataLoader

from captum_fam import MemoryBank, create_model
from captum_fam.demo import CLASSES, PlantedScenes, render_scene
from captum_fam.demo.textures import WALLPAPERS


def equal(one, other):
    """Whether two scenes agree in every bit."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def tight_box(mask):
    """Box of a mask by its coordinates."""
    y, x = mask.nonzero().unbind(1)
    return x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1


@pytest.mark.parametrize("size", [84, (60, 97), (133, 71)])
def test_boxes_are_the_tight_boxes_of_the_masks(size):
    dataset = PlantedScenes("novel", length=24, size=size)
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        assert scene.box == tight_box(scene.mask)
        assert scene.distractor_boxes == tuple(tight_box(mask) for mask in scene.distractor_masks)


@pytest.mark.parametrize("size", [84, (60, 97)])
def test_pixels_change_exactly_where_the_masks_say_an_object_was_drawn(size):
    changed = []
    for seed in range(20):
        # Scenes of one seed share their ground; with other numbers of objects, the objects lie elsewhere.
        scenes = [render_scene(seed, range(20, 20 + count), size=size, seed=seed) for count in range(1, 6)]
        images = torch.stack([scene.image for scene in scenes])
        covered = torch.stack([scene.mask | scene.distractor_masks.any(0) for scene in scenes])
        known = ~covered.all(0)
        ground = images.gather(0, covered.int().argmin(0).expand(1, 3, -1, -1))[0]
        for image, drawn in zip(images, covered, strict=True):
            assert torch.equal(image[:, ~drawn], ground[:, ~drawn])
            changed.append((image != ground).any(0)[drawn & known].float().mean())
        assert known.float().mean() > 0.9
    # A pixel that the outline just grazes may keep its color.
    assert torch.stack(changed).mean() > 0.99


def test_masks_of_one_scene_do_not_overlap_and_do_not_touch_the_border():
    dataset = PlantedScenes("base", length=50, size=(70, 100))
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        masks = torch.cat([scene.mask[None], scene.distractor_masks])
        assert masks.sum(0).max() == 1
        assert not masks[:, [0, -1]].any()
        assert not masks[:, :, [0, -1]].any()


def test_objects_and_distractors_are_of_like_size_and_neither_tiny_nor_dominant():
    dataset = PlantedScenes("novel", length=120)
    scenes = [dataset.scene(index) for index in range(len(dataset))]
    objects = torch.stack([scene.mask.float().mean() for scene in scenes])
    distractors = torch.stack([scene.distractor_masks.float().mean() for scene in scenes])
    assert objects.min() > 0.04
    assert objects.max() < 0.26
    assert (objects.mean() / distractors.mean()).item() == pytest.approx(1, abs=0.1)


def test_an_elongated_image_has_room_for_its_objects():
    scene = render_scene(0, [1, 2], size=(16, 200), seed=4)
    assert scene.image.shape == (3, 16, 200)
    assert scene.mask.any()
    assert scene.distractor_masks.flatten(1).any(1).all()


def test_images_are_float_in_the_unit_range_and_masks_boolean():
    scene = PlantedScenes("base", length=1, size=(40, 50)).scene(0)
    assert scene.image.dtype == torch.float32
    assert scene.image.shape == (3, 40, 50)
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert scene.mask.dtype == scene.distractor_masks.dtype == torch.bool
    assert scene.mask.shape == scene.distractor_masks.shape[1:] == (40, 50)


def test_a_scene_depends_on_seed_and_index_alone():
    dataset, again = PlantedScenes("novel", length=60, seed=3), PlantedScenes("novel", length=40, seed=3)
    backwards = [again.scene(index) for index in reversed(range(40))][::-1]
    assert all(equal(dataset.scene(index), backwards[index]) for index in range(40))


def test_other_seeds_indices_and_splits_give_other_scenes():
    novel = PlantedScenes("novel", length=60, seed=3)
    assert not torch.equal(novel[0][0], novel[24][0])
    assert novel[0][1] == novel[24][1]
    assert not torch.equal(novel[0][0], PlantedScenes("novel", length=60, seed=4)[0][0])
    assert not torch.equal(novel[0][0], PlantedScenes("base", length=60, seed=3)[0][0])


def test_worker_processes_draw_the_same_items():
    dataset = PlantedScenes("base", length=8, size=(32, 40), seed=1)
    (images, labels), (images_of_workers, labels_of_workers) = (
        next(iter(DataLoader(dataset, batch_size=8, num_workers=workers))) for workers in (0, 2)
    )
    assert torch.equal(images, images_of_workers)
    assert torch.equal(labels, labels_of_workers)


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    PlantedScenes("base", length=1)[0]
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_seed_at_twice_the_size_is_the_same_scene():
    small, large = (PlantedScenes("base", length=12, size=(side, side + 20), seed=2) for side in (84, 168))
    large.size = (168, 208)
    for index in range(12):
        coarse = torch.nn.functional.avg_pool2d(large.scene(index).mask[None].float(), 2)[0]
        # Outlines of a quarter pixel apart: masks differ in their rims only.
        assert (coarse - small.scene(index).mask.float()).abs().mean() < 0.02


def test_an_item_is_the_image_and_label_of_its_scene():
    dataset = PlantedScenes("base", length=200, size=32)
    image, label = dataset[150]
    scene = dataset.scene(150)
    assert torch.equal(image, scene.image)
    assert label == scene.label == dataset.targets[150] == 150 - 96
    assert equal(dataset.scene(-50), scene)
    with pytest.raises(IndexError):
        dataset[200]


def test_all_four_groups_of_classes_are_disjoint_and_cover_the_classes():
    base, novel = PlantedScenes("base"), PlantedScenes("novel")
    groups = [base.classes, base.distractor_classes, novel.classes, novel.distractor_classes]
    assert sorted(label for group in groups for label in group) == list(range(len(CLASSES)))
    assert len(base.classes) >= 40
    assert len(novel.classes) >= 20
    assert len(set(map(str, CLASSES))) == len(CLASSES)


def test_no_texture_of_a_novel_class_occurs_in_a_base_scene():
    base, novel = PlantedScenes("base"), PlantedScenes("novel")
    seen = {CLASSES[label].texture for label in (*base.classes, *base.distractor_classes)} | set(WALLPAPERS)
    unseen = {CLASSES[label].texture for label in (*novel.classes, *novel.distractor_classes)}
    assert not seen & unseen


@pytest.mark.parametrize("attribute", ["palette", "silhouette", "texture", "grain"])
def test_no_single_trait_tells_a_class_from_the_others(attribute):
    for split in ("base", "novel"):
        labels = PlantedScenes(split).classes
        traits = [getattr(CLASSES[label], attribute) for label in labels]
        assert all(traits.count(trait) > 1 for trait in traits)


def test_every_class_draws_a_picture_of_its_own():
    images = torch.stack([render_scene(label, size=48, seed=1).image for label in range(len(CLASSES))])
    assert len(images.flatten(1).unique(dim=0)) == len(CLASSES)


def test_an_episode_shares_nothing_but_the_object_between_support_and_query():
    dataset = PlantedScenes("novel", size=32)
    for seed in range(5):
        episode = dataset.episode(way=4, shot=3, query=2, seed=seed)
        in_support = {one for scene in episode.support for one in scene.distractor_labels}
        in_query = {one for scene in episode.query for one in scene.distractor_labels}
        assert not in_support & in_query
        assert not (in_support | in_query) & set(dataset.classes)
        assert set(episode.classes) <= set(dataset.classes)


def test_an_episode_has_the_asked_scenes_in_class_order():
    episode = PlantedScenes("base", size=(32, 48)).episode(way=3, shot=2, query=4, seed=7)
    assert len(set(episode.classes)) == 3
    assert episode.support_images.shape == (6, 3, 32, 48)
    assert episode.query_images.shape == (12, 3, 32, 48)
    assert episode.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert episode.query_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [scene.label for scene in episode.support] == [episode.classes[i] for i in episode.support_labels]
    images = torch.cat([episode.support_images, episode.query_images]).flatten(1)
    assert len(images.unique(dim=0)) == 18


def test_an_episode_depends_on_its_seed_and_the_data_sets():
    dataset = PlantedScenes("novel", size=32, seed=1)
    one, same, other = (dataset.episode(query=1, seed=seed) for seed in (5, 5, 6))
    assert all(equal(a, b) for a, b in zip(one.query, same.query, strict=True))
    assert not torch.equal(one.query_images, other.query_images)
    assert not torch.equal(
        one.query_images, PlantedScenes("novel", size=32, seed=2).episode(query=1, seed=5).query_images
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PlantedScenes("val"), "split .*'val'"),
        (lambda: PlantedScenes("novel").episode(way=25), r"way .*24.* 25"),
        (lambda: PlantedScenes("novel").episode(shot=0), "shot and query .* 0 and"),
        (lambda: render_scene(0, size=(84, 8)), "size .*16.*84x8"),
        (lambda: render_scene(0, [192]), r"label .*191.* 192"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("split", "index", "box", "distractors", "color"),
    [
        ("base", 0, (4, 2, 42, 38), (137, 143), [0.5689, 0.6095, 0.6052]),
        ("base", 101, (36, 4, 81, 48), (120,), [0.4912, 0.5029, 0.5195]),
        ("novel", 0, (33, 51, 59, 77), (175, 176), [0.5866, 0.5697, 0.5030]),
        ("novel", 101, (8, 22, 41, 54), (172, 186), [0.4780, 0.4708, 0.4289]),
    ],
)
def test_scenes_stay_those_that_published_tables_were_measured_on(split, index, box, distractors, color):
    scene = PlantedScenes(split, seed=1).scene(index)
    assert (scene.box, scene.distractor_labels) == (box, distractors)
    torch.testing.assert_close(scene.image.mean((1, 2)), torch.tensor(color), rtol=0, atol=1e-4)


def test_a_memory_bank_of_scenes_has_the_names_of_their_classes():
    bank = MemoryBank.from_dataset(create_model("demo"), PlantedScenes("novel", length=26), progress=False)
    labels = PlantedScenes("novel", length=26).targets
    assert bank.labels.tolist() == labels
    assert bank.class_names[labels[25]] == str(CLASSES[labels[25]])
