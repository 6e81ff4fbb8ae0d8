"""How far test pictures are from training pictures, and who classifies them at each distance.

    python examples/python/nearest_pictures.py artifacts dense-s1

needs pyarrow, NumPy and Pillow, and two minutes. It reads the results of the stages `dataset`
and `evaluate` of the icons, and compares a nearest neighbor on pixels with a run: does the
neighbor win by near copies alone?
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

EDGES = [0, 0.1, 0.2, 0.3, 1]  # of the distances in the table
BLOCK = 500  # test pictures compared at a time


def main(artifacts, run):
    dataset = artifacts / "dataset/current"
    about = json.loads((dataset / "dataset.json").read_text())
    classes = about["classes"]  # the first concepts are those that are classes
    _, labels, known = pictures(dataset, "train", classes)
    correct = outcomes(artifacts / f"evaluate/{run}/current/outcomes.parquet")

    distances, rows = [], []
    for split in about["shifts"]:
        samples, concepts, pixels = pictures(dataset, split, classes)
        distance, nearest = neighbors(pixels, known)
        distances.append(distance)
        for sample, right in zip(samples, labels[nearest] == concepts):
            rows.append([right, correct["init", split, sample], correct["final", split, sample]])
    distances, rows = np.concatenate(distances), 100 * np.array(rows, dtype=float)

    print(f"root mean square difference | pictures | neighbor | {run} before | after")
    for low, high in zip(EDGES, EDGES[1:]):
        chosen = rows[(distances >= low) & (distances < high)]
        means = " | ".join(f"{value:.1f}" for value in chosen.mean(axis=0))
        print(f"{low} to {high} | {len(chosen)} | {means}")


def pictures(dataset, split, classes):
    """Numbers, concepts and pixels in [0, 1] of a split's pictures of classes."""
    columns = ["sample", "image", "concept"]
    table = pq.read_table(dataset / f"samples-{split}.parquet", columns=columns)
    table = table.filter(table["concept"].to_numpy() < classes)
    decoded = (Image.open(io.BytesIO(image.as_py())).convert("RGB") for image in table["image"])
    pixels = np.stack([np.asarray(picture, dtype=np.uint8).ravel() for picture in decoded])
    return table["sample"].to_pylist(), table["concept"].to_numpy(), pixels / np.float32(255)


def outcomes(path):
    """Whether a run classifies a picture, by point, split and number of the picture."""
    rows = pq.read_table(path).to_pylist()
    chosen = (row for row in rows if (row["task"], row["metric"]) == ("concept", "acc1"))
    return {(row["point"], row["split"], row["sample"]): row["value"] for row in chosen}


def neighbors(pixels, known):
    """The distance of each picture to the nearest known one, and which that is."""
    squares = (known**2).sum(axis=1)
    distances, indices = [], []
    for block in np.split(pixels, range(BLOCK, len(pixels), BLOCK)):
        found = squares - 2 * block @ known.T + (block**2).sum(axis=1, keepdims=True)
        indices.append(found.argmin(axis=1))
        distances.append(np.sqrt(np.maximum(found.min(axis=1), 0) / known.shape[1]))
    return np.concatenate(distances), np.concatenate(indices)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
