"""Compares PyTorch and transformers with upcycle, number by number (`make test-python`).

    python test_upcycle_moe.py BIN          (BIN: the folder of the binaries)

Needs torch, safetensors and transformers; no network, no GPU.
"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import upcycle_moe

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else ROOT / "target/release"
FIXTURES = ROOT / "tests/fixtures"
TOLERANCE = 1e-4


def run(tool, *arguments):
    command = [str(BIN / f"upcycle-{tool}"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def mixture(folder, dense, blocks, experts=4, top_k=2, **more):
    """A random MoE of the dense model's shape, saved by the loader."""
    config = dense.config | {"moe": {"experts": experts, "top_k": top_k} | blocks | more}
    torch.manual_seed(7)
    model = upcycle_moe.Clip(config)
    own = dense.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(own[name] if name in own else torch.randn_like(value) * 0.3)
    upcycle_moe.save(model, folder)


class Numbers(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.work = Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def inputs(self, name):
        expected = load_file(FIXTURES / name / "expected.safetensors")
        inputs = {key: expected[key].contiguous() for key in ("pixel_values", "input_ids")}
        save_file(inputs, self.work / "inputs.safetensors")
        return inputs

    def ours(self, checkpoint):
        out = self.work / "outputs.safetensors"
        run("inspect", "forward", "--checkpoint", checkpoint, "--inputs", self.work / "inputs.safetensors", "--output", out)
        return load_file(out)

    def compare(self, theirs, ours):
        self.assertTrue(ours.keys() >= theirs.keys())
        for name, value in theirs.items():
            gap = (value - ours[name]).abs().max().item()
            self.assertLess(gap, TOLERANCE, name)

    def test_dense_models_are_the_same_in_pytorch(self):
        for name in ("clip-tiny-gelu", "clip-tiny-quickgelu"):
            with self.subTest(name):
                inputs, dense = self.inputs(name), self.work / name
                run("import", "--from", FIXTURES / name / "open_clip", "--out", dense)
                with torch.no_grad():
                    theirs = upcycle_moe.load(dense)(**inputs, layers=True)
                self.compare(theirs, self.ours(dense))

    def test_mixtures_are_the_same_in_pytorch_in_shards_too(self):
        for name in ("clip-tiny-gelu", "clip-tiny-quickgelu"):
            with self.subTest(name):
                inputs = self.inputs(name)
                dense, moe, shards = (self.work / f"{name}-{kind}" for kind in ("dense", "moe", "shards"))
                run("import", "--from", FIXTURES / name / "hf", "--out", dense)
                mixture(moe, upcycle_moe.load(dense), {"vision_blocks": [0, 2], "text_blocks": [1]})
                run("export", "--checkpoint", moe, "--layout", "upcycle", "--shard-size", "100kB", "--out", shards)
                index = json.loads((shards / "model.safetensors.index.json").read_text())
                self.assertGreater(len(set(index["weight_map"].values())), 2)
                with torch.no_grad():
                    theirs = upcycle_moe.load(shards)(**inputs, layers=True)
                self.compare(theirs, self.ours(moe))
                self.compare(theirs, self.ours(shards))

    def test_experts_of_low_rank_are_the_same_in_pytorch_kept_and_merged(self):
        inputs, dense, moe = self.inputs("clip-tiny-gelu"), self.work / "dense", self.work / "moe"
        run("import", "--from", FIXTURES / "clip-tiny-gelu/hf", "--out", dense)
        mixture(moe, upcycle_moe.load(dense), {"vision_blocks": [0, 2], "text_blocks": [1]}, rank=3)
        kept, merged = self.work / "kept", self.work / "merged"
        run("export", "--checkpoint", moe, "--layout", "upcycle", "--out", kept)
        run("export", "--checkpoint", moe, "--layout", "upcycle", "--merge", "--out", merged)
        self.assertEqual((kept / "config.json").read_text().count("rank"), 1)
        self.assertNotIn("rank", (merged / "config.json").read_text())
        ours = self.ours(moe)
        for folder in (kept, merged):
            with torch.no_grad():
                self.compare(upcycle_moe.load(folder)(**inputs, layers=True), ours)
            self.compare(self.ours(folder), ours)

    def test_every_parameter_of_a_mixture_learns_in_pytorch(self):
        inputs, dense = self.inputs("clip-tiny-gelu"), self.work / "dense"
        run("import", "--from", FIXTURES / "clip-tiny-gelu/hf", "--out", dense)
        for more in ({}, {"rank": 2}):
            moe = self.work / f"moe{len(more)}"
            blocks = {"vision_blocks": [1], "text_blocks": [2]}
            mixture(moe, upcycle_moe.load(dense), blocks, experts=2, **more)
            model = upcycle_moe.load(moe)
            logits = model(**inputs)["logits_per_image"]
            torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
            for name, parameter in model.named_parameters():
                self.assertIsNotNone(parameter.grad, name)
                self.assertGreater(parameter.grad.abs().max().item(), 0.0, name)

    def test_transformers_loads_our_export(self):
        from transformers import CLIPModel

        for name in ("clip-tiny-gelu", "clip-tiny-quickgelu"):
            for shard in ([], ["--shard-size", "60kB"]):
                with self.subTest(name, shard=shard):
                    inputs, target = self.inputs(name), self.work / f"{name}{len(shard)}"
                    run("export", "--checkpoint", FIXTURES / name / "open_clip", "--layout", "hf", *shard, "--out", target)
                    model, loading = CLIPModel.from_pretrained(target, output_loading_info=True)
                    self.assertFalse(loading["missing_keys"] or loading["unexpected_keys"], loading)
                    with torch.no_grad():
                        theirs = model.eval()(**inputs)
                    keys = ("image_embeds", "text_embeds", "logits_per_image")
                    self.compare({key: theirs[key] for key in keys}, self.ours(target))


if __name__ == "__main__":
    unittest.main(verbosity=2)
