"""Every tutorial runs as it stands: its cells in a kernel of their own, in an empty folder, without a network.

A tutorial is a file ``tutorials/NN_name.md``, a notebook in MyST text. ``<!-- needs: timm, skimage -->`` below its
header names the modules that its code imports beyond the core; where one is missing, the tutorial is skipped. What its
text says of its numbers stands in ``CLAIMS``, as expressions of the names that its cells have made; each must be true
in the end.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.needed_modules import missing, needs

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))

KNOW_THE_SUPPORT = "('FAM', 'exact map', 'exact map, foil', 'Grad-CAM')"
CLAIMS: dict[str, tuple[str, ...]] = {
    "01_fam_and_grad_cam": (
        "accuracy == 1",
        "abs(sums['exact map'] - score) < 1e-4",
        "abs(sums['Grad-CAM']) < 1e-4",
        "all(maps[left][..., :3].sum() > maps[left][..., 4:].sum() for maps in both.values())",
        "all(maps[right][..., :3].sum() < maps[right][..., 4:].sum() for maps in both.values())",
        "maps['exact map, foil'][..., 4:].sum() < 0.05 * maps['exact map, foil'][..., :3].sum()",
        "all((energies[title] > 0.5).all() for title in [*methods, *with_foil])",
        "0.2 < (energies['mean activation'] > 0.5).float().mean() < 0.8",
        "max(energies[title].mean() for title in ('FAM', 'exact map')) < energies['exact map, foil'].mean() - 0.1",
    ),
    "02_why_was_this_returned": (
        "[names[row[0]] for row in ids.tolist()] == ['motorcycle 4', 'astronaut 2']",
        "abs(why.pairs[1][0].similarity - float(scores[1, 0])) < 1e-4",
        "(why.coverage - 1).abs().max() < 1e-3",
        "why.pairs[1][0].query_map.clamp_min(0)[:, 4:].sum() > 0.6 * why.pairs[1][0].query_map.clamp_min(0).sum()",
        "left['space shuttle'] < 0.75 * left['nothing']",
        "left['head of the astronaut'] > 0.9 * left['nothing']",
        "0.8 * left['nothing'] < left['head of the photographer'] < left['camera'] + 0.02",
        "largest < 0.1 * first.similarity",
        "'src=\"http' not in page",
    ),
    "03_does_the_map_know_the_support": (
        f"all(found[title][1] >= 0.9 for title in {KNOW_THE_SUPPORT})",
        "max(found[title][1] for title in ('mean activation', 'center')) <= 0.5",
        "found['exact map, foil'][0] > found['exact map'][0] + 0.3",
        "min(swap[title] for title in ('mean activation', 'center')) > 0.999",
        f"max(swap[title] for title in {KNOW_THE_SUPPORT}) < 0.5",
        "change < 0.1",
        "swap_behind['FAM'] > 0.99",
        "abs(found_behind['FAM'][0] - found_behind['mean activation'][0]) < 0.02",
        "found_behind['exact map'][1] >= 0.9 > 0.5 > swap_behind['exact map']",
        "any('the plain sum of activations' in str(one.message) for one in caught)",
        "inside['constant map'].mean() < inside['mean activation'].mean() < inside['FAM'].mean()",
        "inside['center'].mean() + 0.05 < inside['FAM'].mean() < inside['exact map'].mean() + 0.05",
        "inside['exact map'].mean() + 0.08 < min(inside[title].mean() for title in ('Grad-CAM', 'exact map, foil'))",
    ),
    "04_where_the_score_goes": (
        "right > 0.9",
        "all(abs(sum(parts.values()) - score) < 1e-4 for parts in shares.values())",
        "of_map == sorted(of_map, reverse=True)",
        "of_map[0] > 0.8 * score",
        "of_token[-1] > 0.999 * score",
        "'class token 100 %' in str(caught[-1].message)",
        "found['exact map, input of the blocks'][0] > 0.9",
        "found['attention rollout'][0] == found['attention, last block'][0] == 0.5",
        "0.35 < found['FAM, behind block 2'][0] < 0.65",
        "found['attention, last block'][1] > 3 * area",
        "found['exact map, input of the blocks'][1] > 0.5 > 10 * found['exact map, input of the blocks'][2]",
    ),
    "05_which_point_matches_which": (
        "share_near(found, truth) > 0.8",
        "by_layer['blocks.2']['same cell'] < 0.02",
        "0.35 < by_layer['blocks.2']['best shift'] < 0.5",
        "by_layer['blocks.2']['features'] < by_layer['blocks.4']['features'] < by_layer['bn2']['features']",
        "by_layer['bn2']['features'] < by_layer['bn2']['best shift'] == 1",
        "trust['all'] < trust['there and back'] < trust['the higher half of the cosines']",
        "trust['the higher half of the cosines'] > 0.95",
        "share_right < by_layer['bn2']['features'] - 0.1",
    ),
    "06_knn_and_a_training_callback": (
        "float(rows[-1]['knn_accuracy']) > 3 / 24",
        "all(one['with a foil'] > one['exact map'] + 0.08 for one in found.values())",
        "found['after 6 epochs']['plain sum'] > found['untrained']['plain sum'] + 0.03",
        "found['after 6 epochs']['exact map'] < found['after 6 epochs']['plain sum'] + 0.08",
    ),
    "07_text_prompts_as_supports": (
        "len(set(zero_shot.predicted.tolist())) == 1",
        "(zero_shot.coverage < 0).all()",
        "max(map(abs, pairs)) < 0.6",
        "max(totals.values()) < 0",
        "0.4 < shares['before the blocks']['map'] / totals['before the blocks'] < 0.65",
        "shares['block 4']['map'] == 0",
    ),
    "08_near_duplicates": (
        "all(abs(exact[n].sum() - cosines[n]) < 1e-4 for n in cosines)",
        "all(abs(m.sum()) < 1e-5 for m in gradient.values())",
        "tables['exact map'][:6, :6].min() > 0.99",
        "tables['Grad-CAM'][1, 2] < -0.8",
        "why.pairs[0][0].support_map[4:, 4:].sum() > 0.99 * why.pairs[0][0].support_map.sum()",
    ),
    "09_bring_your_own": (
        "torch.allclose(by_hand, RootCosine().score(z, t), atol=1e-5)",
        "numbers['energy-positive'].idxmax() == numbers['half-area'].idxmin() == 'similarity-cam-foil'",
        "numbers['swap'][['local-cosine-foil', 'similarity-cam-foil']].max() < 0",
    ),
    "10_from_one_image_to_a_million": (
        "sum(seen) < 60",
        "len(table) == len(arrays) == 48",
        "table['similarity-cam.coverage'].min() > 0.99",
        "0.3 < table.right.mean() < 0.8",
    ),
}

# zmq, by which the kernel speaks with the test, opens its sockets without Python.
NO_NETWORK = """
import socket

def _refuse(*address, **options):
    raise OSError("a tutorial runs without a network")

socket.socket.connect = socket.getaddrinfo = _refuse
"""


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_its_claims_hold(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jupytext, nbformat = pytest.importorskip("jupytext"), pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    text = path.read_text(encoding="utf-8")
    if absent := missing(["ipykernel", *needs(text)]):
        pytest.skip(f"the tutorial needs {', '.join(absent)}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")  # tqdm asks for widgets, which no page has
    notebook = jupytext.reads(text, fmt="md:myst")
    claims = CLAIMS.get(path.stem, ())
    asked = f"import json; print(json.dumps([bool(eval(claim, globals())) for claim in {claims!r}]))"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    notebook.cells.append(nbformat.v4.new_code_cell(asked))
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    *cells, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    messages = [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert not messages, "a page would show these messages"
    holds = json.loads("".join(output.text for output in last.outputs))
    assert [claim for claim, is_true in zip(claims, holds, strict=True) if not is_true] == []


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_text_with_the_parts_of_a_tutorial(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text.split("---")[1]
    assert "format_name: myst" in header
    assert "name: python3" in header
    titles = re.findall(r"^(#+) (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    assert [level for level, _ in titles].count("#") == 1
    assert {"What to remember", "Where next"} <= {title for _, title in titles}
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        is_made = re.match(r"\.\./docs/(api/|pictures/|cli\.md)", link)  # by the build of the site
        assert link.startswith("https://") or is_made or (FOLDER / link).exists(), link


def test_claims_are_of_tutorials_that_there_are() -> None:
    assert set(CLAIMS) <= {path.stem for path in TUTORIALS}
