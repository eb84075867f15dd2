"""Rows of torchcam: callables as targets, as in its documentation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject, similarity, with_foil
from captum_fam.functional import smooth_maps

PACKAGE = "torchcam"


def by(method: str, smooth: int = 1) -> Explain:
    """The maps of a class of torchcam.

    Args:
        method: name of the class.
        smooth: window of the mean filter of captum-fam.
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
        return smooth_maps(torch.stack(maps).detach(), smooth)

    return explain


ROWS = (
    *(
        row
        for name in ("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM")
        for row in with_foil(Row(PACKAGE, name, by(name)))
    ),
    *with_foil(Row(PACKAGE, "XGradCAM, smoothed 5 x 5", by("XGradCAM", smooth=5), smoothed=True)),
)
