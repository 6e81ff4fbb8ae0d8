"""The notebook runs from the first cell to the last on the artifacts of the smoke run."""

import os
import sys
import unittest

import nbformat
from harness import ARTIFACTS, ROOT, Case, package
from nbclient import NotebookClient

NOTEBOOK = ROOT / "examples/notebook/upcycle.ipynb"


class Notebook(Case):
    def test_every_cell_runs(self):
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        nbformat.validate(notebook)
        os.environ |= {"ARTIFACTS": str(ARTIFACTS), "MODEL": str(package("moe"))}
        # The kernel is this interpreter, whatever is registered under the name.
        client = NotebookClient(notebook, timeout=300, kernel_name="python3",
                                resources={"metadata": {"path": str(self.work)}})
        client.create_kernel_manager()
        client.km.kernel_spec.argv[0] = sys.executable
        client.execute()
        outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        pictures = [out for out in outputs if "image/png" in out.get("data", {})]
        self.assertGreaterEqual(len(pictures), 3)

    def test_no_output_is_committed(self):
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                self.assertEqual((cell.outputs, cell.execution_count), ([], None))


if __name__ == "__main__":
    unittest.main()
