"""Few-shot episodes: N classes with K supports each, and maps of the queries that are classified correctly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_fam.cli.options import option
from captum_fam.cli.ranges import at_least
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.features import Features
from captum_fam.experiments.protocols.base import Example
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol, PreparedFeatures
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.support import Aggregate


@register_protocol("few-shot")
@dataclass(eq=False, kw_only=True)
class FewShot(FeaturesProtocol):
    """Few-shot classification, section V-B of the FAM paper (arXiv 2307.05017).

    Means are taken over the queries of an episode first, then over episodes. ``swap`` compares with the map for the
    supports of the next class of the episode.

    Args:
        model: the model in two parts, which does not change: a fast copy does the work.
        dataset: items ``(image, label, boxes)``, with images as inputs of the model.
        panel: methods and measures. Default: ``Panel()``.
        way: classes per episode. Default: 5.
        shot: supports per class. Default: 1.
        query: queries per class. Default: 15.
        episodes: number of episodes. Default: 2,000.
        seed: seed of the episodes. Default: 0.
        aggregate: ``"mean"`` for the mean of the similarities to the supports of a class (Eq. 11), ``"prototype"`` for
            the similarity to the mean of the supports. Default: ``"mean"``.
        explain: ``"correct"`` explains the correct queries, ``"all"`` explains all queries for the predicted class.
            Default: ``"correct"``.
        batch_size: images per pass through the backbone. Default: 32.
        num_workers: number of processes that read images. Default: 0.

    Example:
        >>> protocol = FewShot(model, CUB200(root, "novel", model.geometry, model.normalize), episodes=600)
        >>> print(evaluate(protocol, "results"))
    """

    summary = "N-way K-shot episodes"
    split = "novel"
    unit = "episode"
    units = "episodes"
    by_unit = True

    way: int = option("classes per episode", 5, within=at_least(2))
    shot: int = option("supports per class", 1, within=at_least(1))
    query: int = option("queries per class", 15, within=at_least(1))
    episodes: int = option("number of episodes", 2000, within=at_least(1))
    seed: int = option("seed of the episodes", 0, within=at_least(0))
    aggregate: Aggregate = option(
        "score of a class from its supports: mean similarity, or similarity to the prototype", "mean"
    )
    explain: Literal["correct", "all"] = option("which queries are explained", "correct")

    def __len__(self) -> int:
        return self.episodes

    def check_labels(self, labels: Tensor) -> None:
        """Check that there are enough classes with enough images for an episode; see :meth:`Protocol.check_labels`."""
        super().check_labels(labels)
        self.sampler(labels)

    def sampler(self, labels: Tensor) -> EpisodeSampler:
        """The episodes of labeled items.

        Args:
            labels: class of every item, ``(n,)``.

        Raises:
            ValueError: if there are too few classes, or a class has too few items.
        """
        return EpisodeSampler(labels, self.way, self.shot, self.query, self.episodes, self.seed)

    def prepared(self, model: TwoPartModel, features: Features) -> PreparedFewShot:
        """Draw the episodes."""
        return PreparedFewShot(self, model, features)

    @property
    def figure_header(self) -> str:
        """Title above the queries of a figure, which states the form of the episodes."""
        return f"{self.way}-way {self.shot}-shot\naccuracy"

    @property
    def support_title(self) -> str:
        """Title above the first support of the class."""
        return "support" if self.shot == 1 else f"support, 1 of {self.shot}"


class PreparedFewShot(PreparedFeatures[FewShot]):
    """Few-shot episodes of the usable images; for the arguments see :class:`PreparedFeatures`."""

    def __init__(self, protocol: FewShot, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model, features)
        self.sampler = protocol.sampler(features.labels)

    def run_unit(self, unit: int) -> UnitRecord:
        """Run an episode; see :meth:`PreparedFeatures.run_unit`."""
        protocol = self.protocol
        episode = self.sampler.episode(unit)
        rows = episode.query.flatten()
        true = torch.arange(protocol.way).repeat_interleave(protocol.query)
        scores_for = self.scores_of_classes(episode.support, protocol.aggregate)
        activation = self.activation(rows)
        with torch.no_grad():
            scores, predicted = (part.cpu() for part in scores_for(None).predict(activation))
        # By how much the best class leads over the true class: zero for a correct query.
        margin = scores.amax(1) - scores.gather(1, true[:, None])[:, 0]
        correct = predicted == true
        record = UnitRecord(
            unit,
            QueryColumns(
                item=jsonable(self.features.items[rows]),
                label=jsonable(episode.classes[true]),
                predicted=jsonable(episode.classes[predicted]),
                confidence=jsonable(margin),
                correct=jsonable(correct),
            ),
        )
        chosen = (correct if protocol.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        if not len(chosen):
            return record
        activation = activation[chosen.to(activation.device)]
        target = predicted[chosen].to(activation.device)

        def pairs(method: TableMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            return maps, self.maps(method, scores_for, activation, (target + 1) % protocol.way).maps

        explained = protocol.panel.values(
            lambda method: self.maps(method, scores_for, activation, target),
            self.size,
            self.boxes(rows[chosen]),
            self.perturbable(self.images(rows[chosen]), activation, scores_for(None), target),
            pairs,
        )
        record.add_explained(jsonable(chosen), explained)
        return record

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """A query and the supports of a class of the episode; see :meth:`PreparedProtocol.example`."""
        episode = self.sampler.episode(record.unit)
        target = (episode.classes == label).nonzero()[0]
        return Example(
            self.image(record.queries.item[query]),
            self.activation(episode.query.flatten()[query : query + 1]),
            self.scores_of_classes(episode.support, self.protocol.aggregate),
            target.to(self.model.device),
            self.image(int(self.features.items[episode.support[target[0], 0]])),
        )
