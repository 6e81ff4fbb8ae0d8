"""The network in PyTorch alone against `upcycle-inspect forward`, number by number."""

import json
import unittest

import torch
from harness import FIXTURES, Case, package, result, run
from safetensors.torch import load_file

import upcycle_moe
from transformers import AutoModel
from upcycle_moe.modeling_upcycle import UpcycleClipModel
from upcycle_moe.network_upcycle import Moe

NAMES = ("clip-tiny-gelu", "clip-tiny-quickgelu")
BLOCKS = {"vision_blocks": [0, 2], "text_blocks": [1]}


def inputs(name):
    expected = load_file(FIXTURES / name / "expected.safetensors")
    return {key: expected[key] for key in ("pixel_values", "input_ids")}


def mixture(folder, dense, experts=4, top_k=2, **more):
    """A random MoE of the dense model's shape, saved by the package."""
    shape = dense.shape | {"moe": {"experts": experts, "top_k": top_k} | BLOCKS | more}
    torch.manual_seed(7)
    model = upcycle_moe.Clip(shape)
    own = dense.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(own[name] if name in own else torch.randn_like(value) * 0.3)
    upcycle_moe.save(model, folder)


def dispatch(model, how):
    for module in model.modules():
        if isinstance(module, Moe):
            module.dispatch = how


class Network(Case):
    def dense(self, name):
        folder = self.work / name
        if not folder.exists():
            run("import", "--from", FIXTURES / name / "hf", "--out", folder)
        return folder

    def test_a_dense_model_is_the_same(self):
        for name in NAMES:
            with self.subTest(name), torch.no_grad():
                folder, given = self.dense(name), inputs(name)
                theirs = upcycle_moe.load(folder)(**given, layers=True)
                self.same(theirs, self.forward(folder, given))

    def test_a_mixture_is_the_same_by_either_dispatch(self):
        for name in NAMES:
            for more in ({}, {"rank": 3}, {"experts": 6, "top_k": 3}):
                with self.subTest(name, **more), torch.no_grad():
                    given, folder = inputs(name), self.work / f"{name}{len(more)}{more.get('rank')}"
                    mixture(folder, upcycle_moe.load(self.dense(name)), **more)
                    model, ours = upcycle_moe.load(folder), self.forward(folder, given)
                    for how in ("index", "dense"):
                        dispatch(model, how)
                        self.same(model(**given, layers=True), ours)

    def test_ties_go_to_the_lower_index_by_either_dispatch(self):
        torch.manual_seed(1)
        moe, x = Moe(4, 2, 8, 16, "gelu", None), torch.randn(3, 5, 8)
        with torch.no_grad():
            moe.router.weight.zero_()
            expected = (moe.experts.one(0, x, None) + moe.experts.one(1, x, None)) / 2
            for how in ("index", "dense"):
                moe.dispatch = how
                self.assertLess((moe(x, None) - expected).abs().max().item(), 1e-6)

    def test_every_parameter_of_a_mixture_learns_by_either_dispatch(self):
        given, dense = inputs(NAMES[0]), upcycle_moe.load(self.dense(NAMES[0]))
        for more in ({}, {"rank": 2}):
            folder = self.work / f"moe{len(more)}"
            mixture(folder, dense, experts=2, **more)
            gradients = []
            for how in ("index", "dense"):
                model = upcycle_moe.load(folder)
                dispatch(model, how)
                logits = model(**given)["logits_per_image"]
                torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
                gradients.append({name: p.grad for name, p in model.named_parameters()})
            self.same(*gradients)
            for name, gradient in gradients[0].items():
                self.assertGreater(gradient.abs().max().item(), 0.0, name)

    def test_compiled_the_numbers_are_the_same(self):
        given = inputs(NAMES[0])
        folder = self.work / "moe"
        mixture(folder, upcycle_moe.load(self.dense(NAMES[0])))
        model = upcycle_moe.load(folder)
        # The backend without code generation needs no compiler of C.
        compiled = torch.compile(model, backend="aot_eager")
        with torch.no_grad():
            self.same(compiled(**given), self.forward(folder, given))

    def test_in_half_precision_embeddings_point_the_same_way(self):
        given = inputs(NAMES[0])
        folder = self.work / "moe"
        mixture(folder, upcycle_moe.load(self.dense(NAMES[0])))
        ours = self.forward(folder, given)
        with torch.no_grad():
            theirs = upcycle_moe.load(folder).bfloat16()(**given)
        for name in ("image_embeds", "text_embeds"):
            cosine = (theirs[name].float() * ours[name]).sum(-1).min().item()
            self.assertGreater(cosine, 0.99, name)

    def test_shards_are_the_same_model(self):
        given = {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": torch.tensor([[298, 5, 299]])}
        shards = package("moe", "--shard-size", "60kB")
        index = json.loads((shards / "model.safetensors.index.json").read_text())
        self.assertGreater(len(set(index["weight_map"].values())), 2)
        with torch.no_grad():
            theirs = upcycle_moe.load(shards)(**given, layers=True)
        self.same(theirs, self.forward(shards, given))
        self.same(theirs, self.forward(result("train/sparse-s1"), given))

    def test_experts_of_low_rank_are_the_same_kept_and_merged(self):
        given = {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": torch.tensor([[298, 5, 299]])}
        kept, merged = package("low-rank"), package("low-rank", "--merge")
        self.assertIn("rank", json.loads((kept / "config.json").read_text())["moe"])
        self.assertNotIn("rank", json.loads((merged / "config.json").read_text())["moe"])
        ours = self.forward(result("train/ders-lm-s1"), given)
        for folder in (kept, merged):
            with self.subTest(folder.name), torch.no_grad():
                self.same(upcycle_moe.load(folder)(**given, layers=True), ours)

    def test_importing_the_package_makes_remote_code_superfluous(self):
        folder = package("moe")
        model = AutoModel.from_pretrained(folder, trust_remote_code=False)
        self.assertIs(type(model), UpcycleClipModel)
        self.same(dict(model.state_dict()), dict(upcycle_moe.load(folder).state_dict()))

    def test_what_is_not_a_model_is_refused_in_a_sentence(self):
        (self.work / "config.json").write_text('{"model_type": "clip"}')
        with self.assertRaisesRegex(ValueError, "has no embed_dim, so it is not an upcycle model"):
            upcycle_moe.load(self.work)
        model = upcycle_moe.load(package("dense"))
        with self.assertRaisesRegex(ValueError, "17 tokens, the model takes at most 16"):
            model(input_ids=torch.zeros(1, 17, dtype=torch.long))


if __name__ == "__main__":
    unittest.main()
