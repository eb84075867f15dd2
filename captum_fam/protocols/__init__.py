"""The experiments end to end: few-shot, contrastive, retrieval and mosaics, with any methods and measures.

A protocol is an object, :func:`evaluate` runs it to a table, resumably and by any number of processes.
"""

from captum_fam.protocols.contrastive import Contrastive
from captum_fam.protocols.data import load_dataset
from captum_fam.protocols.evaluation import Evaluation, evaluate
from captum_fam.protocols.few_shot import FewShot
from captum_fam.protocols.head import load_head, save_head, train_head
from captum_fam.protocols.measures import Conventions, Panel
from captum_fam.protocols.methods import get_methods
from captum_fam.protocols.model import TwoPartModel, load_model, split_model
from captum_fam.protocols.mosaic import Mosaic
from captum_fam.protocols.retrieval import Retrieval

__all__ = [
    "Contrastive",
    "Conventions",
    "Evaluation",
    "FewShot",
    "Mosaic",
    "Panel",
    "Retrieval",
    "TwoPartModel",
    "evaluate",
    "get_methods",
    "load_dataset",
    "load_head",
    "load_model",
    "save_head",
    "split_model",
    "train_head",
]
