"""One HTML file with photographs, maps and the cells that match, which a browser opens without a server."""

from captum_fam.report.html import write_page
from captum_fam.report.page import (
    CellMatch,
    CellMatches,
    ColorMeaning,
    ReportMap,
    ReportMethod,
    ReportPage,
    ReportPair,
    ReportRow,
    ReportSide,
)

__all__ = [
    "CellMatch",
    "CellMatches",
    "ColorMeaning",
    "ReportMap",
    "ReportMethod",
    "ReportPage",
    "ReportPair",
    "ReportRow",
    "ReportSide",
    "write_page",
]
