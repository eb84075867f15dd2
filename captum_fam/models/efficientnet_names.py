"""The parameter names of EfficientNets in files of EfficientNet-PyTorch, as timm names them."""

from __future__ import annotations

from collections.abc import Sequence

from captum_fam.models.checkpoints import Layout

_PARTS = {
    "_expand_conv": "conv_pw",
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}


def efficientnet_pytorch_layout(blocks: Sequence[int]) -> Layout:
    """The layout of files of EfficientNet-PyTorch, a port of TensorFlow's EfficientNets, for networks of timm.

    The port counts all blocks in one row, where timm counts them by stage. The blocks of the first stage have no
    expansion, so that names of timm there count the normalizations from another one, and call the last convolution
    ``conv_pw``.

    Args:
        blocks: number of blocks of each stage, such as ``[len(stage) for stage in network.blocks]``.

    Returns:
        The layout.

    Example:
        >>> layout = efficientnet_pytorch_layout([1, 2, 2, 3, 3, 4, 1])  # EfficientNet-Lite0
        >>> layout.rename("_blocks.15._bn0.weight"), layout.rename("_blocks.0._project_conv.weight")
        ('blocks.6.0.bn1.weight', 'blocks.0.0.conv_pw.weight')
    """
    places = [(stage, block) for stage, count in enumerate(blocks) for block in range(count)]
    first_stage = r"^(blocks\.0\.\d+)\."
    return Layout(
        "EfficientNet-PyTorch",
        rules=(
            (r"^_(conv_stem|conv_head)\.", r"\1."),
            (r"^_bn0\.", "bn1."),
            (r"^_bn1\.", "bn2."),
            (r"^_fc\.", "classifier."),
            *((rf"^_blocks\.{number}\.", f"blocks.{stage}.{block}.") for number, (stage, block) in enumerate(places)),
            (rf"{first_stage}_bn(\d)\.", r"\1.bn\2."),
            (rf"{first_stage}_project_conv\.", r"\1.conv_pw."),
            *((rf"\._bn{number}\.", f".bn{number + 1}.") for number in range(3)),
            *((rf"\.{theirs}\.", f".{name}.") for theirs, name in _PARTS.items()),
        ),
    )
