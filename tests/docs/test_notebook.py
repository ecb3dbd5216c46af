"""The notebook runs from its first cell to its last, on fewer sentences, and is committed without outputs."""

import os
from unittest.mock import patch

import pytest
from documentation import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the package nbformat")
nbclient = pytest.importorskip("nbclient", reason="needs the package nbclient")
pytest.importorskip("ipykernel", reason="needs the package ipykernel")

NOTEBOOK = ROOT / "examples" / "tagger.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_valid_and_clean(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.slow
def test_notebook_runs(notebook, tmp_path):
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "\nEPOCHS, SENTENCES = 1, 300"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / ".ipython")}):
        client.execute()
    text = {
        cell.id: "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    (score,) = text["show-scores"].splitlines()
    before, after = (float(word) for word in score.split() if word[0].isdigit())
    assert after > before + 20
    # Plain transformers says what fangyan says.
    tags = [pair.rpartition("/")[2] for pair in text["predict"].split()]
    assert [line.split()[1] for line in text["export"].splitlines()] == tags
