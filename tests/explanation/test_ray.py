"""Ray Data takes a BatchExplainer as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from captum_fam import SupportSet, explain
from captum_fam.explanation import BatchExplainer
from tests.explanation.by_hand import as_input, embeddings, picture, small_model

# All in one worker of xdist: each start of Ray takes seconds, and two at once take the processors from each other.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    data.DataContext.get_current().enable_progress_bars = False
    try:
        yield data
    finally:
        ray.shutdown()


def test_map_batches_gives_what_explain_gives(ray_data: Any) -> None:
    photos = [picture(seed) for seed in range(5)]
    support = SupportSet(embeddings([picture(seed) for seed in range(60, 64)]).float(), ["wren", "jay"] * 2)
    why = explain(small_model(), photos, support, method="similarity-cam")
    explain_batch = BatchExplainer(small_model(), support, method="similarity-cam")
    pixels = [{"id": index, "image": np.asarray(photo)} for index, photo in enumerate(photos)]
    floats = torch.stack([as_input(photo) for photo in photos]).float().numpy()
    for data in (
        ray_data.from_items(pixels).map_batches(explain_batch, batch_size=2),
        ray_data.from_numpy(floats).map_batches(
            BatchExplainer(small_model(), support, column="data", method="similarity-cam"), batch_size=3
        ),
        ray_data.from_items(pixels).map_batches(explain_batch, batch_size=4, batch_format="pandas"),
    ):
        rows = data.take_all()
        rows = sorted(rows, key=lambda row: row["id"]) if "id" in rows[0] else rows
        assert "image" not in rows[0]
        np.testing.assert_allclose([row["score"] for row in rows], why.target_scores, rtol=1e-5)
        np.testing.assert_allclose(
            np.stack([np.array(np.array(row["map"]).tolist()) for row in rows]),
            why.attributions[:, 0],
            rtol=1e-4,
            atol=1e-6,
        )
        assert [row["predicted"] for row in rows] == [why.class_names[index] for index in why.predicted]
