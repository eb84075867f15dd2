from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_runs_and_still_prints_what_it_was_saved_with(path):
    notebook = nbformat.read(path, as_version=4)
    saved = [_printed(cell) for cell in notebook.cells]
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert not errors, "saved with messages of the machine it ran on"
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    for before, cell in zip(saved, notebook.cells, strict=True):
        # Numbers may differ in their last digits between machines; words and their order may not.
        assert _words(_printed(cell)) == _words(before)


def _printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []) if output.get("name") == "stdout")


def _words(text: str) -> list[str]:
    return [word for word in text.split() if not any(character.isdigit() for character in word)]
