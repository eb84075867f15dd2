"""The measures of a table: what is kept of every map, and the number that it becomes.

=================  ===========================  ================================================================
measure            columns                      of the map
=================  ===========================  ================================================================
``localization``   ``energy``                   energy proportion (Eq. 19), map scaled by min-max as in the paper
..                 ``energy-positive``          the same of its positive part
..                 ``lift``                     ``energy`` over the boxes' share of the image
..                 ``iou``                      IoU of box and map's box (Eq. 20), map scaled as chosen
``max-box``        ``max-box-acc``              MaxBoxAccV2, map scaled as chosen
``faithfulness``   ``drop``, ``increase``       average drop and increase in confidence (Eq. 21, 22), as chosen
``perturbation``   ``deletion``, ``insertion``  area under the curve of the score, over that of the whole image
``swap``           ``swap``                     correlation with the map for another support
``cells``          ``cell-energy``              of mosaics: energy in the support's cell, of the positive part
..                 ``cell-hit``                 whether that cell has the most
..                 ``cell-auroc``               by the rank of the pixels of the signed map
``coverage``       ``coverage``                 of maps that add up: their sum over the explained score
=================  ===========================  ================================================================

``cells`` and ``coverage`` come wherever they can be had; the others are asked for. All are shares or correlations, none
in percent. A new measure is a function with :func:`register_measure`, in any module.
"""

# The order of these imports is that of the columns of a table.
from captum_fam.experiments.measures import boxes, confidence, specificity  # noqa: F401
from captum_fam.experiments.measures.base import (
    MEASURES,
    Cells,
    Column,
    Conventions,
    MapBatch,
    Measure,
    Perturbable,
    list_measures,
    register_measure,
)
from captum_fam.experiments.measures.panel import Panel

__all__ = [
    "MEASURES",
    "Cells",
    "Column",
    "Conventions",
    "MapBatch",
    "Measure",
    "Panel",
    "Perturbable",
    "list_measures",
    "register_measure",
]
