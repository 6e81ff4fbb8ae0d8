"""An exported folder leaves PyTorch: torch.export, ONNX, onnxruntime."""

import unittest

import numpy
import onnxruntime
import torch
from harness import RUNS, Case, package
from torch.export import Dim
from transformers import AutoModel

# Any number of pictures and texts, and texts of any length up to the context.
SHAPES = {
    "input_ids": {0: Dim("texts"), 1: Dim("tokens", max=16)},
    "pixel_values": {0: Dim("images")},
}
OUTPUTS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
SIZES = ((3, 5, 9), (1, 2, 4), (2, 7, 16))


def given(images, texts, tokens):
    random = torch.Generator().manual_seed(images)
    ids = torch.randint(1, 298, (texts, tokens), generator=random)
    ids[:, -1] = 299
    return {"input_ids": ids, "pixel_values": torch.randn(images, 3, 16, 16, generator=random)}


class Export(Case):
    def models(self):
        for kind in RUNS:
            with self.subTest(kind):
                model = AutoModel.from_pretrained(package(kind), trust_remote_code=True)
                yield kind, model, self.expected(model)

    def expected(self, model):
        with torch.no_grad():
            return [model(**given(*sizes)) for sizes in SIZES]

    def test_torch_export_is_the_same_for_other_sizes(self):
        for _, model, expected in self.models():
            program = torch.export.export(model, (), given(*SIZES[0]), dynamic_shapes=SHAPES)
            for sizes, ours in zip(SIZES, expected):
                out = program.module()(**given(*sizes))
                self.same({name: out[name] for name in OUTPUTS}, ours)

    def test_onnxruntime_is_the_same_for_other_sizes(self):
        for kind, model, expected in self.models():
            path = self.work / f"{kind}.onnx"
            torch.onnx.export(
                model, (), path, kwargs=given(*SIZES[0]), dynamic_shapes=SHAPES,
                output_names=OUTPUTS, external_data=False, verbose=False)
            session = onnxruntime.InferenceSession(path)
            for sizes, ours in zip(SIZES, expected):
                inputs = {name: value.numpy() for name, value in given(*sizes).items()}
                out = dict(zip(OUTPUTS, session.run(OUTPUTS, inputs)))
                self.same({name: torch.from_numpy(numpy.array(value)) for name, value in out.items()}, ours)


if __name__ == "__main__":
    unittest.main()
