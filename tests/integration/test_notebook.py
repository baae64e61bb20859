"""The notebook runs from its first cell to its last in a kernel of its own, and shows what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: see the dev extra")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: see the dev extra")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: see the dev extra")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_no_output_is_stored() -> None:
    """It would be of somebody's machine, and differ with every run."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_it_runs_and_shows_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(known))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [data["text/html"] for data in shown if "<img" in data.get("text/html", "")]
    assert len(pages) >= 2  # an Explanation and a Rewrite
    assert sum("image/gif" in data or "image/png" in data for data in shown) >= 2
    said = [data.get("text/plain", "") for data in shown]
    assert any("torch.Size([4, 2, 14, 14])" in text for text in said)
    assert any("attngrad/drift/spearman" in text for text in said)
    assert any("[True, True, True, True]" in text for text in said)
