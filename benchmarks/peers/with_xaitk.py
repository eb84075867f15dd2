"""Rows of xaitk-saliency: how far the supports move away when parts of the image are hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject

PACKAGE = "xaitk-saliency"
BATCH = 16
# A window of 1 / 4.5 of the image and a step of 1 / 11, as the 50 and 20 pixels of the defaults are of 224.
WINDOW, STEP = 4.48, 11.2
RISE_MASKS = 150


def _pixels(images: Tensor, subject: Subject) -> list[np.ndarray]:
    """Normalized images ``(B, 3, H, W)`` as arrays of bytes ``(H, W, 3)``."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (subject.mean, subject.std))
    return list(((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def _black_box(subject: Subject) -> Any:
    from smqtk_descriptors.interfaces.image_descriptor_generator import ImageDescriptorGenerator

    mean, std = (torch.tensor(values)[:, None, None] for values in (subject.mean, subject.std))

    class Embedding(ImageDescriptorGenerator):
        """The model as the package wants it: arrays of bytes in, vectors out."""

        def generate_arrays_from_images(self, img_mat_iter: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            rest = iter(img_mat_iter)
            while images := list(islice(rest, BATCH)):
                pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
                with torch.no_grad():
                    yield from subject.model((pixels - mean) / std).numpy()

        def get_config(self) -> dict[str, Any]:
            return {}

    return Embedding()


def by(make: Callable[[int], Any]) -> Explain:
    """The maps of a similarity method, averaged over the supports of a class.

    Args:
        make: from the side of the image in pixels to the method.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        supports = question.support_images[list(question.targets)]
        (image,) = _pixels(question.image, subject)
        found = make(min(image.shape[:2]))(image, _pixels(supports.flatten(0, 1), subject), _black_box(subject))
        return torch.from_numpy(found).unflatten(0, supports.shape[:2]).mean(1)[:, None].float()

    return explain


def sliding_window(side: int) -> Any:
    """SBSM: a black window that slides over the image.

    Args:
        side: of the image, in pixels.
    """
    from xaitk_saliency.impls.gen_image_similarity_blackbox_sal.sbsm import SBSMStack

    window, step = round(side / WINDOW), round(side / STEP)
    return SBSMStack((window, window), (step, step), proximity_metric="cosine")


def rise(side: int) -> Any:
    """The same score of random masks in place of a window.

    Args:
        side: of the image, in pixels.
    """
    from xaitk_saliency.impls.gen_descriptor_sim_sal.similarity_scoring import SimilarityScoring
    from xaitk_saliency.impls.gen_image_similarity_blackbox_sal.occlusion_based import PerturbationOcclusion
    from xaitk_saliency.impls.perturb_image.rise import RISEGrid

    return PerturbationOcclusion(RISEGrid(RISE_MASKS, s=8, p1=0.5, seed=0), SimilarityScoring("cosine"))


ROWS = (
    Row(PACKAGE, "SBSMStack", by(sliding_window), supports="images", slow=True),
    Row(PACKAGE, f"RISEGrid, {RISE_MASKS} masks", by(rise), supports="images", slow=True),
)
