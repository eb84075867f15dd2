"""Explaining queries and pairs of images in one call; the result can be drawn, saved and read again."""

from captum_fam.explanation.batch_explainer import BatchExplainer
from captum_fam.explanation.explainer import Explainer
from captum_fam.explanation.figure import compare_figure, pair_figure
from captum_fam.explanation.one_call import explain
from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from captum_fam.explanation.pairs.pair import Pair
from captum_fam.explanation.result import Explanation
from captum_fam.explanation.saved.saving import query_entry, write_query

__all__ = [
    "BatchExplainer",
    "Explainer",
    "Explanation",
    "Pair",
    "compare_figure",
    "explain",
    "explain_pairs",
    "pair_figure",
    "query_entry",
    "write_query",
]
