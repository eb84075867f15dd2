"""The attributes of an embedding model, and the preprocessing that follows from them."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_fam.geometry import Squash
from captum_fam.models import EmbeddingModel

RNG = np.random.default_rng(0)


@pytest.fixture
def net():
    return EmbeddingModel(
        "tiny", nn.Conv2d(3, 4, 3), "", size=84, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )


def test_an_image_is_squashed_by_bicubic_interpolation_and_normalized(net):
    image = Image.fromarray(RNG.integers(0, 256, (50, 120, 3), dtype=np.uint8))
    expected = np.asarray(image.resize((84, 84), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (expected - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    made = net.preprocess(image)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-5)


def test_squashing_keeps_what_lies_at_the_borders(net):
    wide = Image.new("RGB", (80, 20))
    wide.paste((255, 255, 255), (0, 0, 8, 20))  # a center crop would cut it off
    plain = dataclasses.replace(net, size=10, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    out = plain.preprocess(wide)
    assert out[0, 5, 0] > 0.8
    assert out[0, 5, 3:].max() == 0


def test_gray_images_are_taken_for_rgb(net):
    gray = Image.new("L", (20, 30), 51)
    torch.testing.assert_close(net.preprocess(gray), net.preprocess(gray.convert("RGB")))


def test_normalize_takes_what_preprocess_takes_as_numbers_up_to_one(net):
    image = Image.new("RGB", (84, 84), (255, 0, 51))
    pixels = torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1).expand(3, 84, 84)
    torch.testing.assert_close(net.normalize(pixels), net.preprocess(image))


def test_processes_that_read_images_get_the_normalization_without_the_network(net):
    assert len(pickle.dumps(net.normalize)) < 500


def test_a_part_can_be_changed(net):
    other = dataclasses.replace(net, size=64, interpolation="bilinear")
    assert other.geometry == other.evaluation_geometry == Squash(64)
    assert other.model is net.model


def test_little_has_to_be_said_of_a_network_of_ones_own():
    net = EmbeddingModel("mine", nn.Sequential(nn.Conv2d(3, 4, 3)), "0")
    assert (net.size, net.any_size, net.similarity, net.mean) == (224, True, "cosine", (0.485, 0.456, 0.406))
    assert net.layer_module is net.model[0]
