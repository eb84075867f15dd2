"""Layouts of the paper's networks: how the repositories that published weights name the parameters.

Repositories: jakesnell/prototypical-networks and its PyTorch forks (ProtoNet), wyharveychen/CloserLookFewShot,
Tsingularity/FRN, floodsung/LearningToCompare_FSL (RelationNet), kjunelee/MetaOptNet, blue-blue272/fewshot-CAN,
nupurkmr9/S2M2_fewshot, zhirongw/lemniscate.pytorch, facebookresearch/moco, msight-tech/research-ms-loss,
Jeff-Zilence/Explain_Metric_Learning, Cadene/pretrained-models.pytorch.
"""

from __future__ import annotations

from captum_fam.models.checkpoints import OWN_LAYOUT, Layout

_RELU = 0.0

# Cross Attention Network trains any of these networks as the part "base" of a larger network.
_CAN = Layout("CAN", part="base.")

CONV = (
    OWN_LAYOUT,
    _CAN,
    Layout("ProtoNet", ((r"^(\d\.[01]\.)", r"features.\1"),), part="encoder.", negative_slope=_RELU),
    Layout(
        "CloserLook",
        ((r"^(\d)\.C\.", r"features.\1.0."), (r"^(\d)\.BN\.", r"features.\1.1.")),
        part="feature.trunk.",
        ignored=r"\d\.trunk\.",  # the same tensors under a second name
        negative_slope=_RELU,
    ),
    Layout(
        "FRN",
        tuple((rf"^{3 * i}\.layers\.", f"features.{i}.") for i in range(4)),
        part="feature_extractor.layers.",
        negative_slope=_RELU,
    ),
    Layout(
        "RelationNet",
        tuple((rf"^layer{i + 1}\.", f"features.{i}.") for i in range(4)),
        negative_slope=_RELU,
        normalization=(0.92206, 0.08426),
    ),
)

_STAGES = ((r"^layer(\d)\.", r"features.layer\1."),)
RESNET12 = (
    OWN_LAYOUT,
    _CAN,
    Layout("MetaOptNet", _STAGES),
    Layout("CAN", _STAGES, part="base."),
    Layout("FRN", _STAGES, part="feature_extractor."),
)

_RESNET = ((r"^(conv1|bn1|layer\d)\.", r"features.\1."),)
_CLOSER_LOOK_BLOCK = {
    "C1": "conv1",
    "BN1": "bn1",
    "C2": "conv2",
    "BN2": "bn2",
    "shortcut": "downsample.0",
    "BNshortcut": "downsample.1",
}
RESNET18 = (
    OWN_LAYOUT,
    _CAN,
    Layout("torchvision", _RESNET, ignored=r"fc\.", negative_slope=_RELU),
    Layout("CAN", _RESNET, part="base."),
    Layout(
        "CloserLook",
        (
            (r"^0\.", "features.conv1."),
            (r"^1\.", "features.bn1."),
            # Modules 2 and 3 are an activation function and a max-pool; eight blocks in a row follow.
            *((rf"^{4 + i}\.", f"features.layer{1 + i // 2}.{i % 2}.") for i in range(8)),
            *((rf"\.{file_name}\.", f".{name}.") for file_name, name in _CLOSER_LOOK_BLOCK.items()),
        ),
        part="feature.trunk.",
        negative_slope=_RELU,
    ),
)

WIDE_RESNET = (
    OWN_LAYOUT,
    _CAN,
    Layout(
        "S2M2",
        ((r"^(conv1|bn1|block\d)\.", r"features.\1."), (r"\.convShortcut\.", ".shortcut.")),
        ignored=r"linear\.",
        negative_slope=_RELU,
    ),
)

_PROJECTION = (*_RESNET, (r"^fc\.", "head."))
CONTRASTIVE = (
    OWN_LAYOUT,
    Layout("lemniscate", _PROJECTION),
    Layout("MoCo", _PROJECTION, part="encoder_q."),
)

_INCEPTION = (
    (r"^(inception_\d[a-e])_(\w+?)_bn\.", r"\1.\2.bn."),
    (r"^(inception_\d[a-e])_(\w+)\.", r"\1.\2.conv."),
    (r"^(conv\d\w+?)_bn\.", r"\1.bn."),
    (r"^(conv\d\w+)\.(weight|bias)$", r"\1.conv.\2"),
)
_IN_FEATURES = (r"^(conv\d|inception)", r"features.\1")
BN_INCEPTION = (
    OWN_LAYOUT,
    Layout("ms-loss", ((r"^backbone\.", ""), (r"^head\.fc\.", "head."), *_INCEPTION, _IN_FEATURES)),
    Layout("Explain_Metric_Learning", ((r"^classifier\.linear\.", "head."), *_INCEPTION, _IN_FEATURES)),
)
IMAGENET_BN_INCEPTION = Layout("Cadene", _INCEPTION, ignored=r"last_linear\.")
"""For ``load_weights(net.features, ...)``: the weights of a classifier of ImageNet, from which the training starts."""
