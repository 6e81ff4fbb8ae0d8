"""What the tests share: the binaries, the artifacts of a smoke run, and folders exported of them.

`make test-python` sets UPCYCLE_BIN and UPCYCLE_ARTIFACTS. Nothing here reaches the network.
"""

import atexit
import json
import os
import subprocess
import tempfile
import unittest
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ["UPCYCLE_BIN"]).resolve()
ARTIFACTS = Path(os.environ["UPCYCLE_ARTIFACTS"]).resolve()
FIXTURES = ROOT / "tests/fixtures"
TOLERANCE = 1e-4

SCRATCH = tempfile.TemporaryDirectory(prefix="upcycle-test-")
atexit.register(SCRATCH.cleanup)
# Before transformers is imported: what it copies there must not outlive the tests.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(SCRATCH.name) / "hugging-face")

import pyarrow.parquet  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

# One dense run, one MoE, and one with experts of low rank.
RUNS = {"dense": "dense-s1", "moe": "sparse-s1", "low-rank": "ders-lm-s1"}

TEXTS = [
    "red circle",
    "  A drawing\tof a BLUE   square ",
    "it's 12 o'clock, isn't it?",
    "Étoile filante ✨ naïve",
    "日本語",
    "spells <end_of_text> and <start_of_text> and <|endoftext|>",
    "",
    "a caption so long that its tail is cut off and only the end mark is kept at the end of it",
]


def run(tool, *arguments, check=True):
    command = [str(BIN / f"upcycle-{tool}"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stderr}")
    return done


def result(place):
    """The folder of a result of the smoke run."""
    return ARTIFACTS / place / "current"


@cache
def package(kind, *more):
    """A folder exported from the smoke run, with its measurements on the card."""
    name = "-".join([kind, *(word.strip("-") for word in more)])
    out = Path(SCRATCH.name) / "packages" / name
    run("export", "--checkpoint", result(f"train/{RUNS[kind]}"), "--layout", "upcycle",
        "--metrics", result(f"evaluate/{RUNS[kind]}") / "metrics.json", *more, "--out", out)
    return out


@cache
def pictures():
    """Picture files: some of the smoke run, and others that are no squares."""
    import numpy
    from PIL import Image

    folder = Path(SCRATCH.name) / "pictures"
    folder.mkdir()
    table = pyarrow.parquet.read_table(result("dataset") / "samples-pair.parquet")
    for index, png in enumerate(table["image"].to_pylist()[:3]):
        (folder / f"sample-{index}.png").write_bytes(png)
    random = numpy.random.default_rng(3)
    # The excess to cut off is even, odd in both ways, and the last one is transparent.
    for width, height, channels in [(40, 40, 3), (31, 57, 3), (90, 35, 3), (16, 19, 3), (33, 21, 4)]:
        levels = random.integers(0, 256, (height, width, channels), dtype=numpy.uint8)
        Image.fromarray(levels).save(folder / f"random-{width}-{height}-{channels}.png")
    return sorted(folder.glob("*.png"))


class Case(unittest.TestCase):
    """A test with a scratch folder, and comparisons with upcycle's own numbers."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = Path(folder.name)

    def same(self, theirs, ours):
        """Every tensor of theirs is among ours, within the tolerance."""
        self.assertTrue(ours.keys() >= theirs.keys(), theirs.keys() - ours.keys())
        for name, value in theirs.items():
            self.assertEqual(value.shape, ours[name].shape, name)
            self.assertLess((value - ours[name]).abs().max().item(), TOLERANCE, name)

    def forward(self, checkpoint, inputs):
        """The numbers of `upcycle-inspect forward`."""
        given, out = self.work / "inputs.safetensors", self.work / "outputs.safetensors"
        save_file({name: value.contiguous() for name, value in inputs.items()}, given)
        run("inspect", "forward", "--checkpoint", checkpoint, "--inputs", given, "--output", out)
        return load_file(out)

    def ids(self, tokenizer, texts, context):
        """The ids of `upcycle-inspect tokenize`, cut but not filled up."""
        said = run("inspect", "--json", "tokenize", "--tokenizer", tokenizer,
                   "--context", context, "--", *texts).stdout
        return json.loads(said)

    def pixels(self, folder, files):
        """The pixels of `upcycle-inspect preprocess` as the folder wants them."""
        said = json.loads((folder / "preprocessor_config.json").read_text())
        images = [word for file in files for word in ("--image", file)]
        numbers = {key: ",".join(map(str, said[f"image_{key}"])) for key in ("mean", "std")}
        out = self.work / "pixels.safetensors"
        run("inspect", "preprocess", *images, "--size", said["crop_size"]["height"],
            "--mean", numbers["mean"], "--std", numbers["std"], "--output", out)
        return load_file(out)["pixel_values"]
