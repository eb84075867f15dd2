import numpy as np
import pytest
import torch

from captum_fam.experiments.data.episodes import EpisodeSampler

# 7 classes with uneven counts of 9 to 15 items and labels with gaps, in mixed order
LABELS = torch.tensor(np.random.RandomState(0).permutation(np.repeat([3, 7, 11, 15, 19, 23, 30], range(9, 16))))
# drawn with NumPy 2.4
PINNED = ([3, 5, 0], [[14], [22], [1]], [[12, 15], [21, 20], [3, 2]])


def as_lists(episodes):
    return {e.number: (e.classes.tolist(), e.support.tolist(), e.query.tolist()) for e in episodes}


def test_an_episode_has_the_asked_shape_and_every_item_the_class_of_its_row():
    for episode in EpisodeSampler(LABELS, way=5, shot=3, query=6, episodes=40):
        assert episode.support.shape == (5, 3)
        assert episode.query.shape == (5, 6)
        assert len(episode.classes.unique()) == 5
        items = torch.cat([episode.support, episode.query], 1)
        assert len(items.unique()) == 5 * 9
        assert (LABELS[items] == episode.classes[:, None]).all()


def test_an_episode_depends_on_seed_and_number_alone():
    whole = as_lists(EpisodeSampler(LABELS, episodes=20, query=5, seed=4))
    shorter = as_lists(EpisodeSampler(LABELS, episodes=7, query=5, seed=4))
    assert {number: whole[number] for number in shorter} == shorter
    torch.manual_seed(1)
    alone = EpisodeSampler(LABELS.tolist(), episodes=20, query=5, seed=4).episode(13)
    assert as_lists([alone])[13] == whole[13]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_ranks_share_the_episodes_of_one_process(world_size):
    options = {"episodes": 20, "query": 5}
    ranks = [EpisodeSampler(LABELS, **options, rank=r, world_size=world_size) for r in range(world_size)]
    shared = [as_lists(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(part) for part in shared]
    assert list(shared[1]) == list(range(1, 20, world_size))
    assert {k: v for part in shared for k, v in part.items()} == as_lists(EpisodeSampler(LABELS, **options))


def test_seeds_and_episodes_differ():
    drawn = [
        EpisodeSampler(LABELS, query=5, seed=seed).episode(number).support.flatten().tolist()
        for seed in range(4)
        for number in range(4)
    ]
    assert len({tuple(one) for one in drawn}) == 16


def test_an_episode_stays_the_same_with_every_release():
    episode = EpisodeSampler(np.repeat(range(6), 4).tolist(), way=3, shot=1, query=2, seed=7).episode(5)
    assert (episode.classes.tolist(), episode.support.tolist(), episode.query.tolist()) == PINNED


def test_every_class_and_item_is_drawn_about_equally_often():
    labels = np.repeat(range(10), 8)
    counts = np.zeros(80)
    for episode in EpisodeSampler(labels.tolist(), way=4, shot=1, query=3, episodes=1000):
        counts[torch.cat([episode.support, episode.query], 1).flatten().numpy()] += 1
    # 1000 x 16 draws over 80 items: 200 each, standard deviation about 13
    assert counts.min() > 200 - 65
    assert counts.max() < 200 + 65


def test_a_support_alone_needs_no_queries():
    assert EpisodeSampler(LABELS, query=0).episode(0).query.shape == (5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": 10}, r"shot=1 and query=10 need 11 items per class.*fewer: 3 \(9\), 7 \(10\)"),
        ({"way": 8, "query": 1}, "way=8 needs as many classes, labels has 7"),
        ({"way": 0}, "way must be at least 1, got 0"),
        ({"shot": 0}, "shot must be at least 1, got 0"),
        ({"query": -1}, "query must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, "rank must be in 0..world_size - 1, got rank=2, world_size=2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(LABELS, **{"query": 5, **options})


def test_an_episode_beyond_the_last_is_refused():
    with pytest.raises(IndexError, match="episode 20 is out of range for 20 episodes"):
        EpisodeSampler(LABELS, query=5, episodes=20).episode(20)
