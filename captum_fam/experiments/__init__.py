"""The experiments of the paper end to end: few-shot, contrastive, retrieval and mosaics, with any methods and measures.

A protocol says what is to be done, :func:`evaluate` runs it to a table, resumably and by any number of processes.
:func:`register_protocol` and :func:`register_measure` add protocols and measures of your own.
"""

from captum_fam.experiments.cut import split_model
from captum_fam.experiments.data.load import load_dataset
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.linear_head import load_head, save_head, train_head
from captum_fam.experiments.load_model import POOLINGS, load_model
from captum_fam.experiments.measures import Column, Conventions, MapBatch, Panel, register_measure
from captum_fam.experiments.protocols import (
    Contrastive,
    FewShot,
    Mosaic,
    PreparedProtocol,
    Protocol,
    Retrieval,
    register_protocol,
)
from captum_fam.experiments.records import QueryColumns, UnitRecord
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table import Evaluation
from captum_fam.experiments.table_methods import get_methods

__all__ = [
    "POOLINGS",
    "Column",
    "Contrastive",
    "Conventions",
    "Evaluation",
    "FewShot",
    "MapBatch",
    "Mosaic",
    "Panel",
    "PreparedProtocol",
    "Protocol",
    "QueryColumns",
    "Retrieval",
    "TwoPartModel",
    "UnitRecord",
    "evaluate",
    "get_methods",
    "load_dataset",
    "load_head",
    "load_model",
    "register_measure",
    "register_protocol",
    "save_head",
    "split_model",
    "train_head",
]
