"""The report of planted scenes: matches that are right and wrong, with both of their sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from captum_fam.demo.scene_classes import CLASSES
from captum_fam.demo.scene_episodes import Episode
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.explanation import explain
from captum_fam.explanation.report_page import write_report
from captum_fam.support import SimilarityToSupport, SupportSet

_WAY, _SHOT, _QUERIES = 5, 3, 2
_MOST_TRIES = 20


def write_scene_report(network: nn.Module, scenes: PlantedScenes, path: Path) -> Path:
    """Explain an episode with right and wrong predictions, and write both sides of its matches.

    Args:
        network: the network of the demo.
        scenes: the scenes.
        path: the file of the report.

    Returns:
        The file.

    Example:
        >>> from captum_fam.demo import load_demo_network
        >>> write_scene_report(load_demo_network(), PlantedScenes("novel"), Path("report.html")).name
        'report.html'
    """
    episode, support = _mixed_episode(network, scenes)
    names = [f"scene-{number}" for number in range(len(episode.query))]
    why = explain(
        network,
        episode.query_images,
        support,
        layer="features",
        foil="others",
        sides="both",
        top=_SHOT,
        images=episode.query_images,
        names=names,
    )
    assert why.pairs is not None
    # A support of a scene has no name but its class.
    pairs = tuple(tuple(replace(pair, name=pair.label) for pair in of_query) for of_query in why.pairs)
    truth = dict(zip(names, (support.class_names[label] for label in episode.query_labels.tolist()), strict=True))
    write_report(
        [replace(why, pairs=pairs)], path, title="Planted scenes: why this class", wrong_first=True, truth=truth
    )
    return path


def _mixed_episode(network: nn.Module, scenes: PlantedScenes) -> tuple[Episode, SupportSet]:
    """The first episode with a right and a wrong prediction; of many without one the last."""
    for number in range(_MOST_TRIES):
        episode = scenes.episode(way=_WAY, shot=_SHOT, query=_QUERIES, seed=number)
        names = [str(CLASSES[label]) for label in episode.classes]
        support = SupportSet(episode.support_images, episode.support_labels, names)
        with torch.no_grad():
            is_right = SimilarityToSupport(network, support).predict(episode.query_images)[1] == episode.query_labels
        if is_right.any() and not is_right.all():
            break
    return episode, support
