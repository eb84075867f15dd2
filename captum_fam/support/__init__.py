"""What queries are compared with: the interface, support sets, memory banks, foils, and scores of classes."""

from captum_fam.support.base import Support
from captum_fam.support.comparison import Comparison
from captum_fam.support.contrast import Contrast
from captum_fam.support.foil import ContrastedSupport, FoilLike, FoilName
from captum_fam.support.from_tensor import support_from_tensor
from captum_fam.support.gallery import Gallery, GalleryLike
from captum_fam.support.gallery_rows import GalleryRows, TensorRows
from captum_fam.support.labels import LabelRows, Labels, encode_labels
from captum_fam.support.leave_out import LeaveOutSupport, same_ids, same_inputs
from captum_fam.support.members import Members, RowMembers, SameForAll, SharedMembers
from captum_fam.support.memory_bank import MemoryBank
from captum_fam.support.neighbor_rules import NeighborRule
from captum_fam.support.neighbors import Neighbors
from captum_fam.support.rows import BankRows
from captum_fam.support.scores import Aggregate, SimilarityToSupport
from captum_fam.support.sharded_bank import ShardedMemoryBank
from captum_fam.support.support_per_query import SupportPerQuery
from captum_fam.support.support_set import SupportSet
from captum_fam.support.threshold import Against, ThresholdedSupport
from captum_fam.support.vote import Vote
from captum_fam.support.weighted_support import WeightedSupport

__all__ = [
    "Against",
    "Aggregate",
    "BankRows",
    "Comparison",
    "Contrast",
    "ContrastedSupport",
    "FoilLike",
    "FoilName",
    "Gallery",
    "GalleryLike",
    "GalleryRows",
    "LabelRows",
    "Labels",
    "LeaveOutSupport",
    "Members",
    "MemoryBank",
    "NeighborRule",
    "Neighbors",
    "RowMembers",
    "SameForAll",
    "ShardedMemoryBank",
    "SharedMembers",
    "SimilarityToSupport",
    "Support",
    "SupportPerQuery",
    "SupportSet",
    "TensorRows",
    "ThresholdedSupport",
    "Vote",
    "WeightedSupport",
    "encode_labels",
    "same_ids",
    "same_inputs",
    "support_from_tensor",
]
