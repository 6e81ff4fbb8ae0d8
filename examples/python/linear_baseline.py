"""What raw pixels reach on the default data, by a linear model and by the nearest training
picture: the floors that a CLIP must beat.

    python examples/python/linear_baseline.py [ARTIFACTS]

Ridge regression from the pixels of the training pictures to their concepts (one-hot), its
strength chosen on the validation split, then concept accuracy on the splits of the comparison;
and the concept of the training picture at the smallest Euclidean distance, without any choice.
Needs pyarrow, numpy and Pillow.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def read(folder: Path, split: str):
    table = pq.read_table(folder / f"samples-{split}.parquet", columns=["image", "concept"])
    pictures = [Image.open(io.BytesIO(b)).convert("RGB") for b in table["image"].to_pylist()]
    pixels = np.stack([np.asarray(p, dtype=np.float64).reshape(-1) for p in pictures]) / 255
    return np.c_[pixels - 0.75, np.ones(len(pixels))], table["concept"].to_numpy()


def main() -> None:
    artifacts = Path(sys.argv[1] if len(sys.argv) > 1 else "artifacts")
    folder = artifacts / "dataset/current"
    folder = folder if folder.exists() else next((artifacts / "dataset").glob("*/"))
    x, concept = read(folder, "train")
    known, label = np.unique(concept, return_inverse=True)
    target = np.zeros((len(x), len(known)))
    target[np.arange(len(x)), label] = 1
    gram, moment = x.T @ x, x.T @ target

    def weights(strength: float):
        return np.linalg.solve(gram + strength * len(x) * np.eye(len(gram)), moment)

    def accuracy(w, split: str) -> float:
        x, concept = read(folder, split)
        return 100 * float((known[(x @ w).argmax(1)] == concept).mean())

    def nearest(split: str) -> float:
        pictures, concepts = read(folder, split)
        found = []
        for part in np.array_split(pictures, max(1, len(pictures) // 256)):
            # |a - b|^2 without |a|^2, which is the same for every candidate b.
            distance = (x**2).sum(1) - 2 * part @ x.T
            found.append(concept[distance.argmin(1)])
        return 100 * float((np.concatenate(found) == concepts).mean())

    splits = ("val", "pair", "v2", "3d", "sketch", "blob")
    tried = {s: weights(s) for s in (1e-3, 1e-2, 1e-1, 1.0)}
    best = max(tried, key=lambda s: accuracy(tried[s], "val"))
    for name, of in ((f"ridge {best}", lambda s: accuracy(tried[best], s)), ("nearest", nearest)):
        found = {s: of(s) for s in splits}
        found["shift"] = sum(found[s] for s in ("v2", "3d", "sketch", "blob")) / 4
        print(f"{name}: " + ", ".join(f"{s} {v:.1f} %" for s, v in found.items()))


if __name__ == "__main__":
    main()
