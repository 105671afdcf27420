"""The notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "kosmos2.ipynb"


def test_the_notebook_runs(model_folder: Path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    monkeypatch.setenv("KOSMOS2_MODEL", str(model_folder))
    # On one device, as most users have it.
    monkeypatch.setenv("XLA_FLAGS", "")
    settings = {"metadata": {"path": NOTEBOOK.parent}}
    nbclient.NotebookClient(notebook, timeout=300, resources=settings).execute()
    shown = [set(output.data) for cell in code for output in cell.outputs if "data" in output]
    assert sum("image/png" in kinds for kinds in shown) == 5
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream")
    assert "raise max_new_tokens" in printed and "<phrase>" in printed
