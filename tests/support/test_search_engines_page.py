"""The code of docs/search-engines.md runs, with FAISS itself and with stand-ins for the databases."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import Neighbors

PAGE = (Path(__file__).parents[2] / "docs" / "search-engines.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
ROWS = 60


def run(number: int, names: dict[str, Any]) -> None:
    exec(compile(BLOCKS[number], f"block {number} of the page", "exec"), names)


@pytest.fixture
def names(net: nn.Module, make_images: Callable[..., Tensor]) -> dict[str, Any]:
    """What a reader has, and what the first block makes of it."""
    net = net.float().eval()
    gallery = net(make_images(ROWS, seed=2).float()).detach()
    queries = make_images(4, seed=1).float()
    found = {"model": net, "gallery": gallery, "queries": queries, "paths": [f"{i}.png" for i in range(ROWS)]}
    run(0, found)
    return found


def cosines(names: dict[str, Any]) -> Tensor:
    return nn.functional.cosine_similarity(names["query"][:, None], names["gallery"], dim=2)


def check_hits(names: dict[str, Any], name_of: Callable[[int], Any]) -> Neighbors:
    """The hits are the five rows with the largest cosines, and the scores are these cosines."""
    hits: Neighbors = names["hits"]
    expected = cosines(names).topk(5)
    assert hits.ids == tuple(tuple(map(name_of, row)) for row in expected.indices.tolist())
    torch.testing.assert_close(hits.scores, expected.values.double(), atol=1e-5, rtol=1e-5)
    assert hits.score_gap(names["query"]).abs().max() < 1e-5
    return hits


def test_every_block_is_run_by_a_test_here() -> None:
    assert len(BLOCKS) == 8


@pytest.mark.filterwarnings("error:scores:UserWarning")
@pytest.mark.filterwarnings("ignore:more than half:UserWarning")
def test_faiss_with_cosines_and_distances(names: dict[str, Any]) -> None:
    pytest.importorskip("faiss")
    run(1, names)
    hits = check_hits(names, lambda row: row)
    assert hits.image(0, 0) == f"{hits.ids[0][0]}.png"
    mean = cosines(names).topk(5).values.mean(1)
    torch.testing.assert_close(names["why"].target_scores, mean, atol=1e-5, rtol=1e-5)
    run(2, names)
    squares = (names["query"][:, None] - names["gallery"]).square().sum(2).topk(5, largest=False).values
    torch.testing.assert_close(names["why"].target_scores, -squares.mean(1), atol=1e-4, rtol=1e-4)


def test_the_gap_of_a_quantized_index_and_the_query_among_its_hits(names: dict[str, Any]) -> None:
    faiss = names["faiss"] = pytest.importorskip("faiss")
    # Product quantization needs a number of features that four divides.
    generator = torch.Generator().manual_seed(0)
    names["gallery"] = torch.randn(300, 8, generator=generator)
    names["query"] = torch.randn(4, 8, generator=generator)
    run(3, names)
    assert names["gap"].shape == (4, 5)
    assert names["gap"].abs().max() > 1e-3
    names["index"] = faiss.IndexFlatIP(8)
    names["index"].add(nn.functional.normalize(names["gallery"]).numpy())
    run(7, names)
    expected = cosines({"query": names["gallery"][:4], "gallery": names["gallery"]})
    expected[range(4), range(4)] = -1
    assert [row[1:] for row in names["others"].ids] == [tuple(row) for row in expected.topk(4).indices.tolist()]
    assert [row[0] for row in names["others"].ids] == [None] * 4


def test_qdrant(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    known = [str(uuid.UUID(int=row)) for row in range(ROWS)]

    class Client:
        def query_batch_points(self, collection: str, requests: list[Any]) -> list[Any]:
            return [SimpleNamespace(points=self._points(request)) for request in requests]

        def _points(self, request: Any) -> list[Any]:
            scores = nn.functional.cosine_similarity(torch.tensor(request.query), names["gallery"])
            best = scores.topk(request.limit)
            return [
                SimpleNamespace(
                    id=known[row], score=score, payload={"path": f"{row}.png", "species": f"bird {row % 2}"}
                )
                for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]

        def retrieve(self, collection: str, ids: list[str], with_vectors: bool) -> list[Any]:
            assert with_vectors
            vectors = names["gallery"].tolist()
            return [SimpleNamespace(id=one, vector=vectors[known.index(one)]) for one in sorted(ids)]

    module = ModuleType("qdrant_client")
    module.models = SimpleNamespace(QueryRequest=SimpleNamespace)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qdrant_client", module)
    names["client"] = Client()
    run(4, names)
    hits = check_hits(names, lambda row: known[row])
    assert hits.image(2, 1) == f"{known.index(str(hits.ids[2][1]))}.png"
    assert set(hits.class_names) <= {"bird 0", "bird 1"}


def test_lancedb(names: dict[str, Any]) -> None:
    class Search:
        def __init__(self, vector: np.ndarray[Any, Any]) -> None:
            self.scores = nn.functional.cosine_similarity(torch.from_numpy(vector), names["gallery"])

        def distance_type(self, kind: str) -> Search:
            assert kind == "cosine"
            return self

        def limit(self, k: int) -> Search:
            self.k = k
            return self

        def to_list(self) -> list[dict[str, Any]]:
            rows = self.scores.topk(self.k).indices.tolist()
            gallery = names["gallery"].numpy()
            return [{"id": f"r{row}", "vector": gallery[row], "_distance": 1 - float(self.scores[row])} for row in rows]

    names["table"] = SimpleNamespace(search=Search)
    run(5, names)
    check_hits(names, lambda row: f"r{row}")


def test_pgvector(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def execute(self, statement: str, values: tuple[Any, ...]) -> Any:
            if "ANY" in statement:
                (ids,) = values
                rows = [(one, names["gallery"][one - 1000].numpy()) for one in sorted(ids)]
            else:
                scores = nn.functional.cosine_similarity(torch.from_numpy(values[0]), names["gallery"])
                rows = [(int(row) + 1000, float(scores[row])) for row in scores.topk(5).indices]
            return SimpleNamespace(fetchall=lambda: rows)

    for module in ("pgvector", "pgvector.psycopg"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    sys.modules["pgvector.psycopg"].register_vector = lambda connection: None  # type: ignore[attr-defined]
    names["connection"] = Connection()
    run(6, names)
    check_hits(names, lambda row: row + 1000)
