"""Writing a report as one HTML file that needs no server, no network and nothing beside it."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from captum_fam._files import check_no_folder, write_all_or_nothing
from captum_fam.report.head import asset, page_head
from captum_fam.report.page import ReportPage, ReportRow
from captum_fam.report.row import row_lines


def write_page(page: ReportPage, rows: Iterable[ReportRow], path: str | Path, *, wrong_first: bool = False) -> None:
    """Write a report as one HTML file. The rows are written one by one, so that they need not be in memory together.

    The file has all pictures, numbers, styles and the script inside. A content security policy in the file lets no
    other script, style or address in. All texts are shown as they are, whatever characters they have.

    Args:
        page: what all rows share.
        rows: the rows, at least one.
        path: the file; its folder is created if it does not exist.
        wrong_first: whether rows with a wrong prediction come first. Default: False.

    Raises:
        ValueError: if there are no rows, or a row has another number of maps than the page has methods.
        OSError: if the file cannot be written; an earlier file of this name is still there.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from captum_fam.report import ReportMap, ReportMethod, ReportPage, ReportRow, ReportSide, write_page
        >>> photo = Image.new("RGB", (90, 60), "teal")
        >>> row = ReportRow(ReportSide("bird", photo, [ReportMap(np.eye(3), "explains 100 % of the score")]))
        >>> page = ReportPage("Birds", [ReportMethod("similarity-cam", "share of the cosine", is_account=True)])
        >>> write_page(page, [row], "birds.html")
        >>> Path("birds.html").read_text("utf-8").startswith("<!doctype html>")
        True
    """
    path = Path(path)
    check_no_folder(path)
    with write_all_or_nothing(path.parent) as scratch:
        parts = [scratch / ".first", scratch / ".second"]
        first, second = (part.open("w", encoding="utf-8", newline="\n") for part in parts)
        with first, second:
            count = wrong = 0
            pictures: dict[str, str] = {}
            for row in rows:
                _check(row, page)
                out = first if not wrong_first or row.is_wrong else second
                out.writelines(row_lines(row, count, page, pictures))
                count, wrong = count + 1, wrong + row.is_wrong
        if not count:
            raise ValueError("rows must have at least one row, got none")
        with (scratch / path.name).open("w", encoding="utf-8", newline="\n") as out:
            out.write(page_head(page, count, wrong))
            for part in parts:
                with part.open(encoding="utf-8", newline="\n") as body:
                    shutil.copyfileobj(body, out)
            out.write(_tail(page))
        for part in parts:
            part.unlink()


def _check(row: ReportRow, page: ReportPage) -> None:
    sides = [row.query.maps, *(maps for pair in row.pairs for maps in (pair.support.maps, pair.query_maps))]
    for maps in sides:
        if maps and len(maps) != len(page.methods):
            raise ValueError(
                f"maps must be one per method of the page: got {len(maps)} for {len(page.methods)} methods"
            )


def _tail(page: ReportPage) -> str:
    manifest = html.escape(json.dumps(page.manifest, indent=2))
    details = (
        f'<details class="manifest"><summary>Settings of this run</summary><pre tabindex="0">{manifest}</pre></details>'
    )
    return (
        f"{details if page.manifest else ''}\n"
        '</main>\n<p class="said" id="said" aria-live="polite"></p>\n'
        f"<script>{asset('report.js')}</script>\n</body>\n</html>\n"
    )
