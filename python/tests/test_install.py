"""`pip install ./python`: what is installed runs without the repository and without transformers."""

import subprocess
import sys
import unittest

from harness import ROOT, Case, package

SOURCES = {
    "__init__.py", "configuration_upcycle.py", "image_processing_upcycle.py",
    "modeling_upcycle.py", "network_upcycle.py"}

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["transformers"] = None        # as if it were not installed
import importlib.util, torch
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "transformers" else found(name, *more)
import upcycle_moe
model = upcycle_moe.load(sys.argv[2])
print(upcycle_moe.__file__, tuple(model(torch.zeros(1, 3, 16, 16))["image_embeds"].shape))
"""


class Install(Case):
    def test_the_installed_package_runs_alone(self):
        target = self.work / "site"
        # Built from a copy: setuptools leaves its working files beside the sources.
        source = self.work / "source"
        subprocess.run(["cp", "-r", ROOT / "python", source], check=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-build-isolation", "--target", target, source]
        subprocess.run(command, check=True, cwd=self.work)
        self.assertEqual({path.name for path in (target / "upcycle_moe").glob("*.py")}, SOURCES)

        command = [sys.executable, "-B", "-c", PROGRAM, target, package("moe")]
        said = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=self.work, env={}).stdout
        self.assertEqual(said.split(maxsplit=1)[0], str(target / "upcycle_moe/__init__.py"))
        self.assertIn("(1, 32)", said)

    def test_the_folder_holds_the_packages_own_source(self):
        for name in SOURCES - {"__init__.py"}:
            ours = (ROOT / "python/upcycle_moe" / name).read_text()
            self.assertEqual((package("moe") / name).read_text(), ours, name)


if __name__ == "__main__":
    unittest.main()
