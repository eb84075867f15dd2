"""The experiments of the paper end to end: few-shot, contrastive, retrieval and mosaics, with any methods and measures.

A protocol is an object, :func:`evaluate` runs it to a table, resumably and by any number of processes.
"""

from captum_fam.experiments.data.load import load_dataset
from captum_fam.experiments.evaluation import Evaluation, evaluate
from captum_fam.experiments.linear_head import load_head, save_head, train_head
from captum_fam.experiments.measures import Conventions, Panel
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.split_model import TwoPartModel, load_model, split_model
from captum_fam.experiments.table_methods import get_methods

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
