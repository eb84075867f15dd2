"""Explaining queries in one call; the result can be drawn and saved."""

from captum_fam.explanation.explainer import Explainer, explain
from captum_fam.explanation.figure import compare_figure
from captum_fam.explanation.result import Explanation
from captum_fam.explanation.saving import write_query

__all__ = ["Explainer", "Explanation", "compare_figure", "explain", "write_query"]
