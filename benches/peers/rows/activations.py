"""FFN inputs of a full-size ViT-B/32, from picture files to Parquet, against transformers."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from harness import ROOT, Bench, Measure, Row, clock

PICTURES, SIDE, CONTEXT, VOCABULARY, BATCH = 64, 224, 77, 661, 16
TOY = ROOT / "tests/fixtures/tokenizer/toy_bpe.txt.gz"


def rows(bench: Bench) -> list:
    torch.set_num_threads(bench.threads)
    published, pictures = bench.scratch / "published", bench.scratch / "pictures"
    publish(published)
    paint(pictures)
    bench.ours(
        "upcycle-import", "--from", published, "--tokenizer", TOY, "--preprocess", "openai",
        "--out", bench.scratch / "dense",
    )
    flags = settings(bench, pictures)
    for stage in ("dataset", "pretrain"):
        bench.ours(f"upcycle-{stage}", *flags)

    def ours(turn: int) -> Measure:
        seconds, _ = clock(lambda: bench.ours("upcycle-activations", *flags, "--force"))
        folder = bench.scratch / "artifacts/activations/s1/current"
        manifest = json.loads((folder / "manifest.json").read_text())
        found = sum(pq.read_metadata(f).num_rows for f in folder.glob("*.parquet"))
        return Measure(seconds, found, {"peak MB": manifest["provenance"]["peak_rss"] / 1e6})

    model = CLIPModel.from_pretrained(published).eval()
    texts = torch.tensor(ids(bench))

    def peer(turn: int) -> Measure:
        seconds, found = clock(lambda: record(model, pictures, texts, bench.scratch))
        return Measure(seconds, found)

    return [Row(
        name="activations",
        title="FFN inputs of a ViT-B/32 to Parquet",
        note=(
            f"{PICTURES} pictures and captions, random weights at full size (vision 768 x 12, "
            "text 512 x 12), the inputs of every second block's FFN in both towers, zstd.\n"
            "The peer keeps its model loaded and reads PNG files; ours is the whole stage: it "
            "loads the checkpoint, decodes, writes, syncs, hashes and publishes. The text "
            "positions behind the end of text are left out by both; ours does not compute them."
        ),
        peer="transformers + pyarrow",
        contenders={"transformers + pyarrow": peer, "upcycle-activations": ours},
        targets={"upcycle-activations": 1.0},
        quality="rows",
    )]


def publish(folder) -> None:
    """A CLIPModel of ViT-B/32's size with random weights and a small vocabulary."""
    torch.manual_seed(1)
    text = {"vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1, "bos_token_id": VOCABULARY - 2,
            "hidden_act": "quick_gelu"}
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)


def paint(folder) -> None:
    folder.mkdir()
    random = np.random.default_rng(1)
    table = ["filepath,caption,split"]
    for i in range(PICTURES + 8):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / f"{i}.png")
        split = "train" if i < PICTURES else ("val" if i % 2 else "test")
        table.append(f"{i}.png,a picture of number {i} and some more words,{split}")
    (folder / "captions.csv").write_text("\n".join(table) + "\n")


def settings(bench: Bench, pictures) -> list:
    sets = {
        "dataset.source": "folder", "dataset.folder": pictures, "dataset.image_size": SIDE,
        "dataset.context": CONTEXT, "dataset.vocabulary": VOCABULARY,
        "dataset.like": bench.scratch / "dense", "pretrain.checkpoint": bench.scratch / "dense",
        "model.activation": "quick_gelu", "model.embed_dim": 512, "seeds": "[1]",
        "activations.samples": PICTURES, "activations.batch": BATCH,
    }
    for tower, shape in (
        ("vision", {"patch": 32, "width": 768, "layers": 12, "heads": 12, "hidden": 3072}),
        ("text", {"width": 512, "layers": 12, "heads": 8, "hidden": 2048}),
    ):
        sets |= {f"model.{tower}.{key}": value for key, value in shape.items()}
    flags = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return [*flags, "--artifacts", bench.scratch / "artifacts", "--threads", bench.threads,
            "--quiet"]


def ids(bench: Bench) -> list:
    """Token ids of the captions, from our tokenizer: both sides read the same."""
    captions = [f"a picture of number {i} and some more words" for i in range(PICTURES)]
    out = bench.ours(
        "upcycle-inspect", "tokenize", "--tokenizer", bench.scratch / "dense/tokenizer.json",
        *captions,
    )
    found = [json.loads(line) for line in out.splitlines()]
    return [line["ids"] if isinstance(line, dict) else line for line in found]


def record(model, pictures, texts, scratch) -> int:
    """Forward with hooks on LN2 of every second block; rows to one Parquet file a layer."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    layers = {}
    for tower, encoder in (("vision", model.vision_model), ("text", model.text_model)):
        for index in range(1, 12, 2):
            layers[f"{tower}-{index}"] = encoder.encoder.layers[index].layer_norm2
    taken, writers, count = {}, {}, 0
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, name=name: taken.update({name: out}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for first in range(0, PICTURES, BATCH):
            files = [pictures / f"{i}.png" for i in range(first, first + BATCH)]
            pixels = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
            pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            own = texts[first : first + BATCH]
            model(pixel_values=(pixels - mean) / std, input_ids=own)
            end = own.argmax(-1)
            for name, x in taken.items():
                batch, positions, width = x.shape
                sample = torch.arange(first, first + batch)[:, None].expand(batch, positions)
                position = torch.arange(positions)[None].expand(batch, positions)
                keep = torch.ones(batch, positions, dtype=torch.bool)
                if name.startswith("text"):
                    keep = (position > 0) & (position <= end[:, None])
                values = pa.array(x[keep].reshape(-1).numpy())
                table = pa.table({
                    "sample": sample[keep].numpy().astype(np.uint32),
                    "position": position[keep].numpy().astype(np.uint32),
                    "x": pa.FixedSizeListArray.from_arrays(values, width),
                })
                if name not in writers:
                    writers[name] = pq.ParquetWriter(
                        scratch / f"peer-{name}.parquet", table.schema, compression="zstd",
                        use_dictionary=False, column_encoding={"x.list.element": "BYTE_STREAM_SPLIT"},
                        write_statistics=False,
                    )
                writers[name].write_table(table)
                count += table.num_rows
    for writer in writers.values():
        writer.close()
    for hook in hooks:
        hook.remove()
    return count
