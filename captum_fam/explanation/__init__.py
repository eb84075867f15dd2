"""Explaining queries in one call; the result can be drawn and saved."""

from captum_fam.explanation.batch_explainer import BatchExplainer
from captum_fam.explanation.explainer import Explainer, explain
from captum_fam.explanation.figure import compare_figure
from captum_fam.explanation.result import Explanation
from captum_fam.explanation.saving import query_entry, write_query

__all__ = ["BatchExplainer", "Explainer", "Explanation", "compare_figure", "explain", "query_entry", "write_query"]
