"""Explaining queries in one call, and the result that can be drawn and saved."""

from captum_fam.explanation.explainer import (
    Explainer,
    Explanation,
    compare_figure,
    explain,
    versions,
    write_json,
    write_query,
)

__all__ = ["Explainer", "Explanation", "compare_figure", "explain", "versions", "write_json", "write_query"]
