"""The protocols: few-shot episodes, k-NN by a memory bank, retrieval, mosaics."""

from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.retrieval import Retrieval

__all__ = ["Contrastive", "FewShot", "Mosaic", "Retrieval"]
