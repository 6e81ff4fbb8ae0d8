"""Times training steps of the PyTorch CLIP on random data; prints one JSON line.

A process of its own, so that its peak memory is that of training alone.
"""

import json
import resource
import sys
import time

import torch

from clip import Clip, Trainer


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
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }))


if __name__ == "__main__":
    main()
