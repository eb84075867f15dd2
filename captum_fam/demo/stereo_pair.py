"""A photographed stereo pair with known disparity: which position of one image is which of the other is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_fam.attr import LayerCorrespondence, LayerPairs, PairDecomposition
from captum_fam.demo.skimage_files import skimage_file
from captum_fam.images import image_to_tensor, read_image
from captum_fam.models import EmbeddingModel

_SIDES = 32
"""The pair is cut to multiples of this number, the stride of most networks, so that all cells are whole."""


@dataclass(frozen=True)
class StereoPair:
    """Two views of one scene. Each point has the same row in both; its column differs by the disparity.

    Attributes:
        left: ``(3, H, W)`` in [0, 1], not normalized.
        right: ``(3, H, W)``.
        disparity: ``(H, W)`` in pixels; the point at column x of the left image is at column x - disparity of the right
            one. NaN where it is not known.
    """

    left: Tensor
    right: Tensor
    disparity: Tensor

    def true_partners(self, grid: tuple[int, int]) -> Tensor:
        """The position in the right image of the middle of each cell of the left image, in cells.

        Args:
            grid: rows h and columns w of the cells of both images.

        Returns:
            Row and column, ``(h, w, 2)``; a whole number is the middle of a cell. NaN where the disparity is not known,
            and where the right image does not show the point.

        Example:
            >>> image = torch.rand(3, 4, 8)
            >>> StereoPair(image, image, torch.full((4, 8), 3.0)).true_partners((2, 4))[1, :, 1].tolist()
            [nan, -0.5, 0.5, 1.5]
        """
        (height, width), (rows, columns) = self.disparity.shape, grid
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        middle = ((row + 0.5) * height / rows).long(), ((column + 0.5) * width / columns).long()
        partner = torch.stack([row, column - self.disparity[middle] * columns / width], -1)
        is_shown = partner[..., 1] >= -0.5  # the left border of the image; NaN compares as False
        return partner.masked_fill(~is_shown.unsqueeze(-1), torch.nan)


def read_stereo_pair() -> StereoPair:
    """The motorcycle of the Middlebury stereo benchmark (2014), in the installed scikit-image.

    Returns:
        The pair, cut at the right and at the bottom to 480 x 736 pixels.

    Raises:
        ImportError: if scikit-image is not installed; the message has the command that installs it.
        FileNotFoundError: if the installed scikit-image does not hold the pair.
    """
    left, right = (image_to_tensor(read_image(skimage_file(f"motorcycle_{side}.png"))) for side in ("left", "right"))
    with np.load(skimage_file("motorcycle_disp.npz"), allow_pickle=False) as file:
        disparity = torch.from_numpy(file["arr_0"]).float()
    height, width = (length // _SIDES * _SIDES for length in disparity.shape)
    disparity = disparity.masked_fill(disparity.isinf(), torch.nan)
    return StereoPair(left[:, :height, :width], right[:, :height, :width], disparity[:height, :width])


def best_matches(model: EmbeddingModel, pair: StereoPair, layer: str, window: int = 3) -> Tensor:
    """The best partner of each cell by :meth:`LayerCorrespondence.match <captum_fam.LayerCorrespondence.match>`.

    Args:
        model: the model.
        pair: the pair.
        layer: the layer whose positions are matched.
        window: side of the window of a descriptor, in cells. Default: 3.

    Returns:
        Row and column in the right image, in cells, ``(h, w, 2)``.

    Example:
        >>> from captum_fam.demo import load_demo_network
        >>> pair = StereoPair(photo, photo, torch.zeros(60, 90))
        >>> best_matches(create_model("demo"), pair, "features").shape
        torch.Size([3, 5, 2])
    """
    left, right = (model.normalize(image).unsqueeze(0) for image in (pair.left, pair.right))
    correspondence = LayerCorrespondence(model.model, layer, token_grid=model.token_grid, window=window)
    return correspondence.match(left, right).position[0, :, :, 0]


def decompose(model: EmbeddingModel, pair: StereoPair, layer: str) -> PairDecomposition:
    """The similarity of the two images, divided among pairs of cells by :class:`~captum_fam.LayerPairs`.

    Args:
        model: the model.
        pair: the pair.
        layer: the layer whose cells are paired.

    Example:
        >>> pair = StereoPair(photo, photo, torch.zeros(60, 90))
        >>> decompose(create_model("demo"), pair, "features").query_grid
        (3, 5)
    """
    pairs = LayerPairs(model.model, layer, similarity=model.similarity, token_grid=model.token_grid)
    parts = pairs.run(model.normalize(torch.stack([pair.left, pair.right]))).parts()
    return pairs.decompose(parts[0], parts[1])


def largest_shares(decomposition: PairDecomposition) -> Tensor:
    """The partner of each cell with which the cell gives most to the similarity of the pair.

    Args:
        decomposition: of a stereo pair, as :func:`decompose` gives it.

    Returns:
        Row and column in the right image, in cells, ``(h, w, 2)``.

    Example:
        >>> pair = StereoPair(photo, photo, torch.zeros(60, 90))
        >>> largest_shares(decompose(create_model("demo"), pair, "features")).shape
        torch.Size([3, 5, 2])
    """
    partners, _ = decomposition.best_of_query(1)
    _, columns = decomposition.support_grid
    row_and_column = torch.stack([partners // columns, partners % columns], -1)
    return row_and_column.view(*decomposition.query_grid, 2)


def is_near(found: Tensor, truth: Tensor) -> Tensor:
    """Whether partners lie within one cell of the truth, in row and in column.

    Args:
        found: row and column, in cells, ``(..., 2)``.
        truth: row and column, in cells, ``(..., 2)``; NaN where it is not known.

    Returns:
        Boolean, of the leading shape; False where the truth is not known.

    Example:
        >>> is_near(torch.tensor([[2, 3], [2, 3]]), torch.tensor([[2.0, 4.0], [2.0, 4.5]]))
        tensor([ True, False])
    """
    return ((found - truth).abs() <= 1).all(-1)


def share_near(found: Tensor, truth: Tensor) -> float:
    """The share of the cells with a known truth whose partner lies within one cell of it.

    Args:
        found: row and column, in cells, ``(h, w, 2)``.
        truth: as :meth:`StereoPair.true_partners` gives it, ``(h, w, 2)``.

    Example:
        >>> share_near(torch.tensor([[[2, 3], [2, 3]]]), torch.tensor([[[2.0, 4.0], [torch.nan, torch.nan]]]))
        1.0
    """
    known = ~truth.isnan().any(-1)
    return float(is_near(found, truth)[known].float().mean())


def floors(truth: Tensor) -> dict[str, float]:
    """What partners reach that know nothing of the images.

    Args:
        truth: as :meth:`StereoPair.true_partners` gives it, ``(h, w, 2)``.

    Returns:
        The share of :func:`share_near` of each cell with itself, ``"same cell"``; of a random cell, ``"random cell"``,
        in the mean; and of one shift by whole cells for the whole image, ``"best shift"``, the best of all such shifts,
        which only the truth can choose.

    Example:
        >>> pair = StereoPair(photo, photo, torch.full((60, 90), 18.0))
        >>> floors(pair.true_partners((10, 15)))["best shift"]
        1.0
    """
    rows, columns, _ = truth.shape
    cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    known = truth[~truth.isnan().any(-1)]
    near_in_row, near_in_column = (
        ((torch.arange(length) - known[:, axis, None]).abs() <= 1).sum(1) for axis, length in ((0, rows), (1, columns))
    )
    shifts = (torch.stack([cells[..., 0], cells[..., 1] - shift], -1) for shift in range(columns))
    return {
        "same cell": share_near(cells, truth),
        "random cell": float((near_in_row * near_in_column).float().mean() / (rows * columns)),
        "best shift": max(share_near(shifted, truth) for shifted in shifts),
    }
