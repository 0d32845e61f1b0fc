"""The notebooks run from their first cell to their last, and hold pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000  # of a notebook with its outputs


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    for folder in ("notebooks", "configs", "samples"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    run = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=where).execute()
    kinds = [set(output.get("data", ())) for output in outputs(run)]
    assert sum("image/jpeg" in kind for kind in kinds) >= 3


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_small_pictures_and_no_error(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    saved = json.loads(text)
    assert len(text) < MOST_BYTES
    assert {output["output_type"] for output in outputs(saved)} <= {"display_data", "stream"}
    pictures = [output for output in outputs(saved) if "image/jpeg" in output.get("data", {})]
    assert len(pictures) >= 3
    for text in [output["text"] for output in outputs(saved) if "text" in output]:
        assert "/tmp" not in "".join(text) and str(REPOSITORY) not in "".join(text)
