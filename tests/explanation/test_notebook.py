"""An explanation shows itself in a notebook, in a window, as a line of text and as a table."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam import Explanation, SupportSet, explain

pytestmark = pytest.mark.filterwarnings("ignore:the map explains", "ignore:more than half of a map")
EVIL = "<script>alert(1)</script>\"'&"


class Tags(HTMLParser):
    """The tags of a text, with their attributes, and its visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def why(model: nn.Module, support: SupportSet, many_queries: Tensor) -> Explanation:
    return explain(model, many_queries, support, layer="features", foil="others")


def test_it_is_one_line_of_text(why: Explanation, model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    assert repr(why) == str(why) == "Explanation(5 queries, similarity-cam, beside: fam, layer 'features', foil others)"
    assert repr(why["query-3"]).startswith("Explanation(1 query, similarity-cam, beside: fam,")
    assert repr(why.beside[0]) == "Explanation(5 queries, fam, layer 'features', foil others)"
    alone = explain(model, queries, supports, layer="features", method="random")
    assert repr(alone) == "Explanation(2 queries, random, layer 'features')"


def test_a_notebook_shows_the_first_four_figures(why: Explanation) -> None:
    made = Tags(why._repr_html_())
    images = [attributes for tag, attributes in made.tags if tag == "img"]
    assert len(images) == 4
    for index, image in enumerate(images):
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        figure = why.figure(index)
        figure.set_dpi(72)
        whole = np.asarray(figure.as_image()).astype(float)
        assert np.abs(np.asarray(shown) - whole).mean() < 8
        score = float(why.target_scores[index])
        assert (image["alt"] or "").startswith(f"query-{index}: ")
        assert f"score {score:#.3g} (plain score {float(why.plain_scores[index]):#.3g})" in (image["alt"] or "")
        assert "similarity-cam explains 100 % of the score; fam no account of the score" in (image["alt"] or "")
    assert "... and 1 more" in made.words
    # A notebook keeps the figures in its text: as PNG they would need several times as many letters.
    assert len(why._repr_html_()) < 600_000
    assert repr(why) in made.words
    assert {tag for tag, _ in made.tags} == {"p", "code", "figure", "img", "figcaption"}
    assert "more" not in Tags(why[:4]._repr_html_()).words.replace(repr(why), "")


def test_no_text_becomes_markup(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    why = explain(
        model, queries, SupportSet(supports, [EVIL, EVIL, "b"]), layer="features", names=["<img onerror=x>", "b"]
    )
    made = Tags(why._repr_html_())
    assert {tag for tag, _ in made.tags} == {"p", "code", "figure", "img", "figcaption"}
    assert {name for _, attributes in made.tags for name in attributes} <= {"alt", "src", "style"}
    assert "<img onerror=x>: " in made.words
    if EVIL in {why.class_names[index] for index in why.target.tolist()}:
        assert EVIL in made.words


def test_a_front_end_gets_what_it_asks_for(why: Explanation) -> None:
    one = why[0]
    assert list(one._repr_mimebundle_()) == ["text/plain", "text/html"]
    assert one._repr_mimebundle_(include={"text/plain"}) == {"text/plain": repr(one)}
    assert list(one._repr_mimebundle_(exclude={"text/html"})) == ["text/plain"]
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    formats, _ = formatter.format(one)
    assert formats["text/plain"] == repr(one)
    assert formats["text/html"] == one._repr_html_()


def test_a_script_without_a_window_prints_a_line(why: Explanation, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    why.show(3)
    printed = capsys.readouterr().out
    assert re.fullmatch(
        r"query-3: \w+, score .*; similarity-cam explains 100 % .*; fam no account of the score\n", printed
    )
    assert plt.get_fignums() == before
    why.show(-1)
    assert capsys.readouterr().out.startswith("query-4: ")
    with pytest.raises(IndexError):
        why.show(5)


def test_a_window_opens_where_there_is_one(why: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown: list[Any] = []
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "tk")
    monkeypatch.setattr(plt, "show", lambda: shown.append(np.asarray(plt.gcf().axes[0].images[0].get_array())))
    why.show(2)
    plt.close("all")
    (pixels,) = shown
    assert np.array_equal(pixels, np.asarray(why.figure(2).as_image()))


def test_a_notebook_shows_a_figure_below_the_cell(
    why: Explanation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    display = SimpleNamespace(display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    why.show()
    (figure,) = shown
    assert np.array_equal(np.asarray(figure.as_image()), np.asarray(why.figure(0).as_image()))
    assert capsys.readouterr().out == ""


def test_it_is_a_table_of_pandas(why: Explanation) -> None:
    pytest.importorskip("pandas")
    frame = why.to_dataframe()
    assert list(frame.columns) == [
        *("name", "target", "predicted", "score", "plain_score"),
        *("similarity-cam.coverage", "similarity-cam.account", "fam.coverage", "fam.account", "smooth"),
    ]
    assert frame["name"].tolist() == list(why.names)
    assert frame["target"].tolist() == [why.class_names[index] for index in why.target]
    np.testing.assert_array_equal(frame["score"], why.target_scores)
    np.testing.assert_array_equal(frame["plain_score"], why.plain_scores)
    np.testing.assert_allclose(frame["similarity-cam.coverage"], np.ones(5))
    assert frame["fam.coverage"].isna().all()
    assert frame["fam.account"].tolist() == ["no account of the score"] * 5


def test_a_table_without_pandas_names_the_extra(why: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r'to_dataframe\(\) needs pandas: pip install "captum-fam\[pandas\]"'):
        why.to_dataframe()


def test_a_report_is_written(why: Explanation, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    page = pytest.importorskip("captum_fam.explanation.report_page")
    asked: list[Any] = []
    monkeypatch.setattr(page, "write_report", lambda *args, **options: asked.append((args, options)))
    why.to_html(tmp_path / "why.html")
    why.to_html("other.html", title="Birds", wrong_first=True)
    assert asked[0][0][0] == [why]
    assert asked[0][0][1] == tmp_path / "why.html"
    assert asked[0][1] == {}
    assert asked[1][1] == {"title": "Birds", "wrong_first": True}


def test_a_wide_explanation_is_not_drawn_before_it_is_shown(why: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explanation, "figure", lambda *_: pytest.fail("drawn"))
    assert torch.equal(why[1].maps, why.maps[1:2])
    assert why._repr_mimebundle_(include={"text/plain"})
