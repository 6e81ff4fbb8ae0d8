"""Times training steps of the PyTorch CLIP on random data; prints one JSON line.

A process of its own, so that its peak memory is that of training alone.
"""

import json
import sys
import time
from pathlib import Path

import torch

from clip import Clip, Trainer


def peak_bytes() -> int:
    """Of this process alone: what getrusage tells begins with the parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    given = json.loads(sys.argv[1])
    shape, batch = given["shape"], given["batch"]
    torch.set_num_threads(given["threads"])
    torch.manual_seed(1)
    trainer = Trainer(Clip(shape, given["moe"]))
    side = shape["image_size"]
    pixels = torch.randn(batch, 3, side, side)
    ids = torch.randint(0, shape["vocabulary"] - 1, (batch, shape["context"]))
    ids[:, -1] = shape["vocabulary"] - 1
    times = []
    for step in range(2 + given["steps"]):
        start = time.perf_counter()
        trainer.step(pixels, ids, 0.01 if given["moe"] else 0.0)
        if step >= 2:
            times.append(time.perf_counter() - start)
    print(json.dumps({
        "seconds": sorted(times)[len(times) // 2],
        "peak_bytes": peak_bytes(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }))


if __name__ == "__main__":
    main()
