"""Few-shot episodes: N classes, K supports of each, and the maps of the queries that are classified correctly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.measures import Panel, jsonable
from captum_fam.experiments.protocols.base import Example, FeaturesProtocol
from captum_fam.experiments.records import Record
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.support import Aggregate


class FewShot(FeaturesProtocol):
    """The paper's section V-B. Means are taken over the queries of an episode, then over episodes.

    ``swap`` compares with the map for the supports of the next class of the episode.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label, boxes)``, images as the model takes them.
        panel: methods and measures.
        way: classes an episode.
        shot: supports a class.
        query: queries a class.
        episodes: how many.
        seed: of the episodes.
        aggregate: ``"mean"`` of the similarities to a class's supports (Eq. 11), or to their ``"prototype"``.
        explain: the ``"correct"`` queries for their class, or ``"all"`` for the predicted one.
        batch_size: images that go through the backbone at once.
        num_workers: processes that read images.

    Example:
        >>> protocol = FewShot(model, CUB200(root, "novel", model.geometry, model.normalize), episodes=600)
        >>> print(evaluate(protocol, "results"))
    """

    name = "few-shot"
    unit = "episode"
    units = "episodes"
    by_unit = True

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        panel: Panel | None = None,
        *,
        way: int = 5,
        shot: int = 1,
        query: int = 15,
        episodes: int = 2000,
        seed: int = 0,
        aggregate: Aggregate = "mean",
        explain: Literal["correct", "all"] = "correct",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(model, dataset, panel, batch_size=batch_size, num_workers=num_workers)
        self.way = way
        self.shot = shot
        self.query = query
        self.episodes = episodes
        self.seed = seed
        self.aggregate = aggregate
        self.explain = explain

    def __len__(self) -> int:
        return self.episodes

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        own = ("way", "shot", "query", "episodes", "seed", "aggregate", "explain")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """Every image through the backbone once, then the episodes."""
        super().prepare(folder, ranks, progress)
        self._sampler = EpisodeSampler(self._features.labels, self.way, self.shot, self.query, self.episodes, self.seed)

    def _run(self, unit: int) -> Record:
        episode = self._sampler.episode(unit)
        rows = episode.query.flatten()
        true = torch.arange(self.way).repeat_interleave(self.query)
        scores_for = self._scores_of_classes(episode.support, self.aggregate)
        activation = self._activation(rows)
        with torch.no_grad():
            scores = scores_for(None)(activation).cpu()
        predicted = scores.argmax(1)
        margin = scores.amax(1) - scores.gather(1, true[:, None])[:, 0]
        correct = predicted == true
        chosen = (correct if self.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        record: Record = {
            "unit": unit,
            "queries": {
                "item": jsonable(self._features.items[rows]),
                "label": jsonable(episode.classes[true]),
                "predicted": jsonable(episode.classes[predicted]),
                "confidence": jsonable(margin),
                "correct": jsonable(correct),
            },
            "explained": {"row": jsonable(chosen)},
        }
        if not len(chosen):
            return record
        activation = activation[chosen.to(activation.device)]
        target = predicted[chosen].to(activation.device)
        images = self._features.images(rows[chosen]) if self.panel.needs_images else None
        boxes = [self._features.boxes[row] for row in rows[chosen].tolist()] if self._features.boxes else []
        record["explained"] |= self.panel.values(
            lambda method: self.account(method, scores_for, activation, target),
            self.size,
            boxes,
            self.perturbable(images, activation, scores_for(None), target),
            lambda method, maps: (maps, self.maps(method, scores_for, activation, (target + 1) % self.way)),
        )
        return record

    def example(self, record: Record, query: int, label: int) -> Example:
        """One query and the supports of a class of its episode."""
        episode = self._sampler.episode(record["unit"])
        target = (episode.classes == label).nonzero()[0]
        return Example(
            self.image(record["queries"]["item"][query]),
            self._activation(episode.query.flatten()[query : query + 1]),
            self._scores_of_classes(episode.support, self.aggregate),
            target.to(self.model.device),
            self.image(int(self._features.items[episode.support[target[0], 0]])),
        )
