"""A folder with an explanation: written, and read again without running any code from it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from captum_fam._files import MANIFEST, read_json, versions, write_all_or_nothing, write_json
from captum_fam._text import first_line, printable_path
from captum_fam.explanation.reading.thumbnails import KeptPictures, shown_by_row
from captum_fam.explanation.saved.saved_pairs import pair_entry, read_pair
from captum_fam.explanation.saved.saving import file_stems, hash_of_name, write_query
from captum_fam.images import as_rgb, read_image

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation

FORMAT = 1
"""The version of the format of a saved explanation."""

_OF_THE_SCORE = (
    "scores",
    "predicted",
    "target",
    "plain_scores",
    "support_rows",
    "support_similarities",
    "support_weights",
)
_PNG_LEVEL, _JPEG_QUALITY = 3, 90
_FILE_KEYS, _SUFFIXES = ("arrays", "overlay", "file"), (".npz", ".png", ".jpg")
_NAME = "query.name"
"""The array with the hash of the name of the query, so that files that were exchanged are noticed."""
_Arrays = dict[str, Any]

# Whatever is wrong in a damaged file: a key, a type, a shape, the archive, an image.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, EOFError, BadZipFile, zlib.error)


def save_explanation(explanation: Explanation, folder: str | Path, *, overlays: bool) -> None:
    """Write an explanation, with the methods beside it, as :meth:`Explanation.save` describes.

    Args:
        explanation: the explanation.
        folder: the folder to write to.
        overlays: whether to draw each map over its query.

    Raises:
        ValueError: for images that cannot be drawn.
        OSError: if the files cannot be written.
    """
    explanations = (explanation, *explanation.beside)
    former = _files_of(Path(folder))
    with write_all_or_nothing(folder) as scratch:
        stems = file_stems(explanation.names)
        queries = [_write(explanations, index, scratch, overlays, stem) for index, stem in enumerate(stems)]
        notes = dict.fromkeys(note for one in explanations for note in one.notes)
        methods = {
            one.method: {"about": dict(one.about), "notes": list(one.notes), "support_blind": one.support_blind}
            for one in explanations
        }
        manifest = {
            **explanation.about,
            "classes": list(explanation.class_names),
            "notes": list(notes),
            "queries": queries,
            "explanation": {"format": FORMAT, "methods": methods},
            "versions": versions(),
        }
        write_json(scratch / MANIFEST, manifest)
        stale = former - {path.name for path in scratch.iterdir()}
    for name in stale:
        (Path(folder) / name).unlink(missing_ok=True)


def read_explanation(folder: str | Path) -> list[dict[str, Any]]:
    """Read the folder of a saved explanation.

    Args:
        folder: the folder.

    Returns:
        The fields of :class:`Explanation`, except ``beside``, for each method; that of the explanation first.

    Raises:
        FileNotFoundError: for a folder without a manifest.
        ValueError: for a folder of other results or of another version, and for damaged files; the message has the
            reason.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{printable_path(folder)} holds no {MANIFEST}, and so no saved explanation")
    manifest = read_json(path, "save the explanation again")
    marks = manifest.get("explanation")
    version = marks.get("format") if isinstance(marks, dict) else None
    if version != FORMAT:
        saved = "is no explanation that was saved" if version is None else f"was saved in the format {version}"
        raise ValueError(
            f"{printable_path(folder)} {saved}, expected the format {FORMAT} of Explanation.save; "
            "explain and save again"
        )
    try:
        return _read(folder, manifest)
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{printable_path(folder)} is damaged ({reason}); explain and save again") from error


def _files_of(folder: Path) -> set[str]:
    """The files that the manifest of an earlier explanation in a folder lists; none for any other folder."""
    try:
        manifest = read_json(folder / MANIFEST, "")
    except (OSError, ValueError):
        return set()
    found: set[str] = set()
    waiting: list[Any] = [manifest["queries"]] if "explanation" in manifest and "queries" in manifest else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found |= {value for key, value in one.items() if key in _FILE_KEYS and isinstance(value, str)}
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    # A manifest of others must not remove anything else.
    return {name for name in found if Path(name).name == name and Path(name).suffix in _SUFFIXES}


def _write(explanations: Sequence[Explanation], index: int, folder: Path, overlays: bool, stem: str) -> dict[str, Any]:
    """Write the files of one query; returns its entry in the manifest."""
    first = explanations[0]
    arrays: _Arrays = {_NAME: np.array(hash_of_name(first.names[index]))}
    for name in _OF_THE_SCORE:
        value = getattr(first, name)
        if value is not None:
            arrays[f"query.{name}"] = value[index].cpu().numpy()
    image = first.images[index]
    if isinstance(image, Image):
        shown: Any = f"{stem}.image.png"
        as_rgb(image).save(folder / shown, compress_level=_PNG_LEVEL)
        shown = {"file": shown}
    else:
        shown = _keep(image, "query.image", arrays, folder)
    pictures = [
        [
            [row, [_keep(one, f"query.{kind}.{row}.{number}", arrays, folder) for number, one in enumerate(images)]]
            for row, images in by_row.items()
        ]
        for kind, by_row in zip(("supports", "foils"), shown_by_row(first, index), strict=True)
    ]
    pairs = {
        one.method: [
            pair_entry(pair, f"{one.method}.pairs.{number}", arrays)
            | {"image": _keep(pair.image, f"{one.method}.pairs.{number}.image", arrays, folder)}
            for number, pair in enumerate(one.pairs[index])
        ]
        for one in explanations
        if one.pairs is not None
    }
    entry = write_query(explanations, index, folder, overlays=overlays, more=arrays, stem=stem)
    for method, entries in pairs.items():
        entry["methods"][method]["pairs"] = entries
    return {**entry, "image": shown, "pictures": pictures[0], "foil_pictures": pictures[1]}


def _keep(image: Any, name: str, arrays: _Arrays, folder: Path) -> dict[str, str]:
    """Keep a picture: one of PIL as a file that all queries share, everything else among the arrays."""
    if isinstance(image, Image):
        picture = as_rgb(image)
        file = f"picture-{hashlib.sha256(picture.tobytes() + repr(picture.size).encode()).hexdigest()[:16]}.jpg"
        if not (folder / file).exists():
            picture.save(folder / file, quality=_JPEG_QUALITY)
        return {"file": file}
    is_tensor = isinstance(image, Tensor)
    if is_tensor:
        values = image.detach().cpu()
        arrays[name] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    else:
        arrays[name] = np.asarray(image)
    return {"tensor" if is_tensor else "array": name}


def _read(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each method."""
    queries = manifest["queries"]
    opened: list[_Arrays] = []
    for entry in queries:
        with np.load(_path(folder, entry["arrays"]), allow_pickle=False) as file:
            opened.append({name: file[name] for name in file.files})
        if str(opened[-1][_NAME]) != hash_of_name(entry["name"]):
            raise ValueError(f"{entry['arrays']} holds the arrays of another query")
    common: dict[str, Any] = {
        name: _stacked([arrays.get(f"query.{name}") for arrays in opened]) for name in _OF_THE_SCORE
    }
    if common["scores"].shape != (len(queries), len(manifest["classes"])):
        raise ValueError(f"scores of shape {tuple(common['scores'].shape)} for {len(manifest['classes'])} classes")
    read: dict[str, Any] = {}  # every file once
    each = list(zip(queries, opened, strict=True))
    common |= {
        "class_names": tuple(manifest["classes"]),
        "names": tuple(entry["name"] for entry in queries),
        "images": [_kept(entry["image"], arrays, folder, read) for entry, arrays in each],
    }
    for name, key in (("support_pictures", "pictures"), ("foil_pictures", "foil_pictures")):
        by_row = [
            {row: [_kept(one, arrays, folder, read) for one in images] for row, images in entry[key]}
            for entry, arrays in each
        ]
        common[name] = KeptPictures(by_row) if any(by_row) else None
    fields = []
    for method, of_method in manifest["explanation"]["methods"].items():
        pairs = None
        if all("pairs" in entry["methods"][method] for entry in queries):
            pairs = tuple(
                tuple(
                    read_pair(pair, f"{method}.pairs.{number}", arrays, _kept(pair["image"], arrays, folder, read))
                    for number, pair in enumerate(entry["methods"][method]["pairs"])
                )
                for entry, arrays in each
            )
        fields.append(
            {
                **common,
                "method": method,
                "about": of_method["about"],
                "notes": tuple(of_method["notes"]),
                "support_blind": bool(of_method["support_blind"]),
                "pairs": pairs,
                **_fields_of(method, opened),
            }
        )
    return fields


def _fields_of(method: str, opened: Sequence[_Arrays]) -> dict[str, Any]:
    """The maps of a method and what it says of them."""
    prefix = f"{method}.shares."
    parts = [name.removeprefix(prefix) for name in opened[0] if name.startswith(prefix)]
    names = {"contributions": "contributions", "convergence_delta": "delta", "coverage": "coverage"}
    return {
        "maps": _stacked([arrays[method][None] for arrays in opened]),
        "attributions": _stacked([arrays[f"{method}.layer"][None] for arrays in opened]),
        **{name: _stacked([arrays.get(f"{method}.{key}") for arrays in opened]) for name, key in names.items()},
        "shares": {part: _stacked([arrays[prefix + part] for arrays in opened]) for part in parts} or None,
    }


def _stacked(values: Sequence[Any]) -> Any:
    """One value per query as a tensor; None where no query has one."""
    return None if values[0] is None else torch.stack([torch.from_numpy(np.asarray(value)) for value in values])


def _kept(entry: Mapping[str, str], arrays: _Arrays, folder: Path, read: dict[str, Any]) -> Any:
    """A picture that :func:`_keep` or :func:`_write` kept."""
    ((kind, name),) = entry.items()
    if kind == "file":
        if name not in read:
            read[name] = read_image(_path(folder, name))
        return read[name]
    return torch.from_numpy(arrays[name]) if kind == "tensor" else arrays[name]


def _path(folder: Path, name: str) -> Path:
    """A file of the folder; a manifest of others must not name files elsewhere."""
    if Path(name).name != name:
        raise ValueError(f"the manifest names {name!r}, which is no file of the folder")
    return folder / name
