"""A protocol of a third party: is an image more like the next one of its class than like the next of another?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_fam.cli.options import option
from captum_fam.experiments import QueryColumns, TwoPartModel, UnitRecord, register_protocol
from captum_fam.experiments.protocols import Example, FeaturesProtocol, PreparedFeatures


@register_protocol("twins")
@dataclass(eq=False, kw_only=True)
class Twins(FeaturesProtocol):
    """Every ``stride``-th image against one of its class and one of another."""

    summary = "an image, one of its class and one of another"
    split = "novel"
    unit = "pair"
    units = "pairs"
    default_measures = ("localization",)
    gives = frozenset({"boxes"})

    stride: int = option("take every so many images", 4)

    def __len__(self) -> int:
        return len(range(0, len(self.dataset), self.stride))

    def prepared(self, model: TwoPartModel, features: object) -> PreparedTwins:
        return PreparedTwins(self, model, features)


class PreparedTwins(PreparedFeatures):
    """The pairs, with the features of all images."""

    def run_unit(self, unit: int) -> UnitRecord:
        query = unit * self.protocol.stride
        twin, other = self.partners(query)
        label = int(self.features.labels[query])
        activation = self.activation(torch.tensor([query]))
        scores_for = self.scores_of_classes(torch.tensor([[twin], [other]]), "mean")
        with torch.no_grad():
            scores, predicted = scores_for(None).predict(activation)
        correct = int(predicted[0] == 0)
        labels = [label, int(self.features.labels[other])]
        columns = QueryColumns(
            [int(self.features.items[query])],
            [label],
            [labels[int(predicted[0])]],
            [float(scores[0, 0] - scores[0, 1])],
            [correct],
        )
        record = UnitRecord(unit, columns)
        if correct:
            explained = self.protocol.panel.values(
                lambda method: self.maps(method, scores_for, activation, predicted),
                self.size,
                self.boxes(torch.tensor([query])),
            )
            record.add_explained([0], explained)
        return record

    def partners(self, query: int) -> tuple[int, int]:
        """The next image of the same class, and the next of another."""
        labels: Tensor = self.features.labels.roll(-query - 1)
        same = labels[:-1] == self.features.labels[query]
        count = len(self.features.labels)
        twin, other = (int(is_it.nonzero()[0, 0]) for is_it in (same, ~same))
        return (query + 1 + twin) % count, (query + 1 + other) % count

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        row = record.unit * self.protocol.stride
        twin, other = self.partners(row)
        is_own = label == record.queries.label[query]
        return Example(
            self.image(record.queries.item[query]),
            self.activation(torch.tensor([row])),
            self.scores_of_classes(torch.tensor([[twin], [other]]), "mean"),
            torch.tensor([0 if is_own else 1]),
            self.image(int(self.features.items[twin if is_own else other])),
        )
