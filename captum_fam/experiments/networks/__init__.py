"""The networks of the paper's experiments; each network is registered under its name beside its class.

:func:`captum_fam.models.create_model` finds the networks by the entry points of this package, in ``setup.cfg``. It
loads the weights that the authors of a network published; `layouts` has the parameter names of their files.
"""

from captum_fam.experiments.networks.bn_inception import BNInception
from captum_fam.experiments.networks.conv import Conv64F
from captum_fam.experiments.networks.resnet import ContrastiveResNet, ResNet18
from captum_fam.experiments.networks.resnet12 import DecayingDropBlock, ResNet12
from captum_fam.experiments.networks.wide_resnet import WideResNet

__all__ = [
    "BNInception",
    "ContrastiveResNet",
    "Conv64F",
    "DecayingDropBlock",
    "ResNet12",
    "ResNet18",
    "WideResNet",
]
