"""Draws which expert every patch of some validation pictures goes to, run beside run.

    python examples/python/experts_on_pictures.py artifacts docs/experts.png

needs pyarrow and Pillow. It reads the results of the stages `dataset` and `analyze`.
"""

import io
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

RUNS = [("sparse-s1", "Sparse Upcycling"), ("cluster-aware-eesd-s1", "Cluster-aware + EESD")]
PICTURES, SIDE, GAP, LABEL = 10, 96, 8, 24
# The colors of experts in the report.
COLORS = ["#6a3fb5", "#8db600", "#d81b60", "#00a3a3", "#7a4a21", "#f2c200", "#2b2f86", "#ff8fb8"]


def main(artifacts, out):
    tables = {run: analyzed(artifacts, run) for run, _ in RUNS}
    block = max(row["layer"] for row in tables[RUNS[0][0]])
    samples = sorted({row["sample"] for row in tables[RUNS[0][0]]})
    shown = [samples[i * len(samples) // PICTURES] for i in range(PICTURES)]
    val = artifacts / "dataset/current/samples-val.parquet"
    rows = pq.read_table(val, columns=["sample", "image"]).to_pylist()
    pictures = {row["sample"]: row["image"] for row in rows if row["sample"] in shown}

    width = PICTURES * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, (len(RUNS) + 1) * (SIDE + LABEL)), "white")
    names = ["Pictures of the validation split"]
    names += [f"{name}: the first expert of each patch, image block {block}" for _, name in RUNS]
    font = ImageFont.load_default(size=15)
    for line, name in enumerate(names):
        top = line * (SIDE + LABEL)
        ImageDraw.Draw(sheet).text((0, top), name, fill="#22252a", font=font)
        for column, sample in enumerate(shown):
            picture = Image.open(io.BytesIO(pictures[sample])).convert("RGB")
            picture = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            if line > 0:
                picture = colored(picture, tables[RUNS[line - 1][0]], block, sample)
            sheet.paste(picture, (column * (SIDE + GAP), top + LABEL - 3))
    sheet.quantize(128).save(out, optimize=True)


def analyzed(artifacts, run):
    """The tokens of the image tower after training."""
    rows = pq.read_table(artifacts / "analyze" / run / "current/tokens.parquet").to_pylist()
    return [row for row in rows if (row["point"], row["tower"]) == ("final", "vision")]


def colored(picture, rows, block, sample):
    own = [row for row in rows if (row["layer"], row["sample"]) == (block, sample)]
    patches = round((len(own) - 1) ** 0.5)
    tint = Image.new("RGB", (patches, patches))
    for row in own:
        # The class token comes first and is no part of the picture.
        if row["position"] > 0:
            place = divmod(row["position"] - 1, patches)
            color = Image.new("RGB", (1, 1), COLORS[row["expert"] % len(COLORS)])
            tint.paste(color, (place[1], place[0]))
    tint = tint.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return Image.blend(picture, tint, 0.55)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
