"""Rows of torchcam: callables as targets, as in its documentation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject, similarity, with_foil

PACKAGE = "torchcam"


def by(method: str) -> Explain:
    """The maps of a class of torchcam.

    Args:
        method: name of the class.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        from torchcam import methods

        # One forward pass serves all targets; the graph stays for the next but the last.
        last = len(question.targets) - 1
        with getattr(methods, method)(subject.model, subject.layer) as extractor:
            scores = subject.model(question.image)
            maps = [
                extractor(scores=scores, targets=partial(similarity, direction=direction), retain_graph=i < last)[0]
                for i, direction in enumerate(question.directions)
            ]
        return torch.stack(maps).detach()

    return explain


ROWS = tuple(
    row
    for method in ("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM")
    for row in with_foil(Row(PACKAGE, method, by(method)))
)
