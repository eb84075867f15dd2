"""The protocols: few-shot episodes, k-NN by a memory bank, retrieval and mosaics, and the registry of protocols."""

from captum_fam.experiments.protocols.base import BATCH_SIZE, Example, PreparedProtocol, Protocol
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol, PreparedFeatures
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.registry import PROTOCOLS, get_protocol, list_protocols, register_protocol
from captum_fam.experiments.protocols.retrieval import Retrieval

__all__ = [
    "BATCH_SIZE",
    "PROTOCOLS",
    "Contrastive",
    "Example",
    "FeaturesProtocol",
    "FewShot",
    "Mosaic",
    "PreparedFeatures",
    "PreparedProtocol",
    "Protocol",
    "Retrieval",
    "get_protocol",
    "list_protocols",
    "register_protocol",
]
