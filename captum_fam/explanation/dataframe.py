"""An explanation as a table of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from captum_fam._files import need

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation


def as_dataframe(explanation: Explanation) -> Any:
    """One row per query.

    Args:
        explanation: the explanation.

    Returns:
        A ``DataFrame`` of pandas, with the columns of :meth:`Explanation.to_dataframe`.

    Raises:
        ModuleNotFoundError: without pandas; the message names the extra.
    """
    pandas = need("pandas", extra="pandas", purpose="to_dataframe()")
    classes = np.array(explanation.class_names, dtype=object)
    columns: dict[str, Any] = {
        "name": list(explanation.names),
        "target": classes[explanation.target.cpu().numpy()],
        "predicted": classes[explanation.predicted.cpu().numpy()],
        "score": explanation.target_scores.cpu().numpy(),
        "plain_score": explanation.plain_scores.cpu().numpy(),
    }
    for one in (explanation, *explanation.beside):
        unknown = np.full(len(one), np.nan)
        columns[f"{one.method}.coverage"] = unknown if one.coverage is None else one.coverage.cpu().numpy()
        columns[f"{one.method}.account"] = [one.account_text(index) for index in range(len(one))]
    columns["smooth"] = explanation.smooth
    return pandas.DataFrame(columns)
