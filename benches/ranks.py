"""What several ranks cost: `python3 benches/ranks.py --binaries target/mpi/release`.

Trains the dense model of a configuration on 1, 2 and 4 ranks of this machine, reads the time,
the seconds in collectives and the memory of each rank, and checks that the model has the same
bytes. Then the same is computed for networks that are not at hand, marked as arithmetic. Writes
the section "Many machines" of docs/scale.md.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "## Many machines"
# Ranks and threads of each, on this machine.
WAYS = [(1, 1), (1, 2), (2, 1), (4, 1)]
# Steps of two runs, whose difference is free of what happens once: 64 pairs are shared by 4.
SHORT, LONG, BATCH = 20, 120, 64
# Parameters, and the embedding width, of the paper's models with E = 8 (docs/method.md).
MODELS = {"B/16": (436_212_225, 512), "L/14": (1_331_000_000, 768)}
NETWORKS = {"25 Gb/s": 25e9 / 8, "100 Gb/s": 100e9 / 8}
# Seconds from one machine to another, a message: a usual figure of Ethernet with TCP.
LATENCY = 50e-6
BLOCK = 4 << 20
PAIRS = 32768
# Seconds of a training step of one pair of a B/16 mixture on the two cores of docs/scale.md.
STEP = re.compile(r"A step of (\d+) pairs with self-distillation takes ([\d.]+) s here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/mpi/release")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/scale.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upcycle-ranks-") as scratch:
        rows = measured(args.binaries.resolve(), Path(scratch))
    text = args.out.read_text()
    kept, tail = text.split(MARK)[0], text.split(MARK)[1]
    prose = tail.split("\n<!-- measured -->")[0]
    parts = [prose, "<!-- measured -->", *measured_table(rows), *arithmetic(), *simulation(text)]
    args.out.write_text(kept + MARK + "\n".join(parts) + "\n")


def picture(number: int) -> bytes:
    """A picture of 16 x 16 in the format PPM, which needs no library."""
    draw = random.Random(number)
    return b"P6 16 16 255\n" + bytes(draw.randrange(256) for _ in range(3 * 16 * 16))


def pictures(folder: Path) -> None:
    """400 pictures with captions of their own, so that a batch may be large."""
    folder.mkdir()
    lines = ["filename,caption"]
    for number in range(400):
        (folder / f"{number}.ppm").write_bytes(picture(number))
        lines.append(f"{number}.ppm,picture number {number} of noise")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def measured(binaries: Path, scratch: Path) -> list[dict]:
    """One row for each way to run the same training."""
    pictures(scratch / "pictures")
    rows, models = [], set()
    for ranks, threads in WAYS:
        seconds = {}
        for steps in (SHORT, LONG):
            artifacts = scratch / f"{ranks}-{threads}-{steps}"
            where = options(scratch, artifacts, steps)
            run([binaries / "upcycle-dataset", *where])
            command = [binaries / "upcycle-pretrain", *where, "--threads", str(threads)]
            if ranks > 1:
                command = ["mpirun", "-np", str(ranks), "--bind-to", "none", *command,
                           "--ranks", str(ranks)]
            run(command)
            place = artifacts / "pretrain/s1/current"
            manifest = json.loads((place / "manifest.json").read_text())
            seconds[steps] = (manifest["provenance"]["wall"],
                              manifest["metrics"].get("collective_seconds", 0.0))
        models.add((place / "model.safetensors").read_bytes())
        step = (seconds[LONG][0] - seconds[SHORT][0]) / (LONG - SHORT)
        together = (seconds[LONG][1] - seconds[SHORT][1]) / (LONG - SHORT)
        rows.append({"ranks": ranks, "threads": threads, "step": step, "collectives": together,
                     "memory": manifest["provenance"]["peak_rss"],
                     "parameters": manifest["metrics"]["parameters"]})
    if len(models) != 1:
        raise SystemExit("the models differ: the number of ranks changed bits")
    return rows


def options(scratch: Path, artifacts: Path, steps: int) -> list[str]:
    sets = ["seeds=[1]", "device=cpu", "dataset.source=folder",
            f"dataset.folder={scratch / 'pictures'}",
            "model.embed_dim=256", f"pretrain.optim.batch={BATCH}",
            f"pretrain.optim.steps={steps}", "pretrain.optim.validate_every=0",
            "pretrain.optim.checkpoint_every=0"]
    for tower in ("vision", "text"):
        sets += [f"model.{tower}.width=256", f"model.{tower}.layers=4", f"model.{tower}.heads=4",
                 f"model.{tower}.hidden=1024"]
    words = ["--config", str(ROOT / "pipeline.yaml"), "--artifacts", str(artifacts),
             "--profile", "smoke"]
    for one in sets:
        words += ["--set", one]
    return words


def run(command: list) -> None:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = subprocess.run([str(word) for word in command], env=os.environ | root, text=True,
                          capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def measured_table(rows: list[dict]) -> list[str]:
    load = os.getloadavg()[0]
    count = rows[0]["parameters"] / 1e6
    lines = ["", f"Measured on {os.cpu_count()} cores of {processor()} over shared memory, load "
             f"{load:.1f}: a dense model of {count:.1f} million parameters, {BATCH} pairs a step; "
             f"the step is the difference of {LONG} and {SHORT} steps. The models have the same "
             "bytes.", "",
             "| ranks x threads | ms a step | of them in collectives | peak memory of rank 0 |",
             "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['ranks']} x {row['threads']} | {1e3 * row['step']:.0f} | "
                     f"{1e3 * row['collectives']:.0f} | {row['memory'] / 2**20:.0f} MiB |")
    return lines


def traffic(model: str, ranks: int) -> float:
    """Bytes that a rank sends in a step: gradients to their owners and weights back, then the
    embeddings of its pairs to all others."""
    parameters, width = MODELS[model]
    return (8 * parameters + 8 * PAIRS * width) * (ranks - 1) / ranks


def transfer(model: str, ranks: int, speed: float) -> float:
    """Seconds for that, where sending and receiving overlap, and each round has a latency for
    every other rank."""
    rounds = 2 * -(-MODELS[model][0] * 4 // (ranks * BLOCK))
    return traffic(model, ranks) / speed + rounds * (ranks - 1) * LATENCY


def arithmetic() -> list[str]:
    lines = ["", "Arithmetic, not measured: what a step sends over a network, for the paper's "
             f"batch of {PAIRS} pairs, E = 8, in blocks of 4 MiB with {1e6 * LATENCY:.0f} us a "
             "message.", "", "| model | ranks | GB a rank | " +
             " | ".join(f"seconds at {name}" for name in NETWORKS) + " |",
             "|---|---|---|" + "---|" * len(NETWORKS)]
    for model in MODELS:
        for ranks in (8, 64):
            seconds = [transfer(model, ranks, speed) for speed in NETWORKS.values()]
            lines.append(f"| {model} | {ranks} | {traffic(model, ranks) / 1e9:.1f} | " +
                         " | ".join(f"{s:.1f}" for s in seconds) + " |")
    return lines


def simulation(text: str) -> list[str]:
    """A step in which every rank computes its part, with chance of its own, and the slowest
    decides when all exchange."""
    found = STEP.findall(text)
    if not found:
        raise SystemExit("docs/scale.md has no measured step of B/16: run `make bench-scale`")
    pairs, seconds = found[-1]
    a_pair, cores = float(seconds) / float(pairs), 2
    lines = ["", f"Simulated from what was measured above, {a_pair:.2f} s for a pair of B/16 on "
             f"{cores} cores, as if nodes of 64 cores were {64 // cores} times as fast, their "
             "steps varied by 3 %, and the slowest of 200 draws decided: seconds of a step of "
             f"{PAIRS} pairs, and the fraction of it that is computing.", "",
             "| ranks | " + " | ".join(NETWORKS) + " |", "|---|" + "---|" * len(NETWORKS)]
    draw = random.Random(1)
    for ranks in (1, 8, 64):
        alone = PAIRS / ranks * a_pair / (64 // cores)
        steps = [max(draw.gauss(alone, 0.03 * alone) for _ in range(ranks)) for _ in range(200)]
        slowest = statistics.mean(steps)
        cells = []
        for speed in NETWORKS.values():
            step = slowest + (transfer("B/16", ranks, speed) if ranks > 1 else 0.0)
            cells.append(f"{step:.0f} s, {100 * alone / step:.0f} %")
        lines.append(f"| {ranks} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
