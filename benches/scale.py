"""The full-size pipeline on this machine: `make bench-scale`.

Publishes a CLIP of the size that a configuration names, with random weights, as Hugging Face
would; imports it, and runs every stage on a few hundred drawn pictures and two training steps.
Time and memory are those that each stage wrote into its manifest. Writes docs/scale.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = ROOT / "tests/fixtures/tokenizer/bpe_simple_vocab_16e6.txt.gz"
STAGES = ["dataset", "pretrain", "activations", "cluster", "subspaces", "upcycle", "train",
          "evaluate", "analyze", "report"]
# Of the profile `trial` of the configurations.
STEPS, BATCH, PICTURES, CALIBRATION = 2, 16, 640, 256
PAPER_SAMPLES = 1.3e9
MANY = "## Many machines"
# Dense half-precision peak of the data sheet, and the share of it that open_clip's trainings
# of this size are usually seen to use.
HARDWARE = {"8 x A100 80 GB": (8 * 312e12, 0.3), "8 x H100 SXM": (8 * 989e12, 0.3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--models", nargs="*", default=["vit-b-32", "vit-b-16"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/scale.md")
    args = parser.parse_args()
    # The section on many machines is benches/ranks.py's.
    former = args.out.read_text() if args.out.exists() else ""
    kept = former[former.find(MANY):] if MANY in former else ""
    parts = [HEAD]
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="upcycle-scale-") as scratch:
            parts.append(section(model, args.binaries.resolve(), Path(scratch)))
        args.out.write_text("\n".join(parts) + "\n" + kept)


HEAD = f"""# At full size

Written by `make bench-scale`, the tables of "Many machines" by `benches/ranks.py`; do not edit them.
`configs/vit-b-32.yaml` and `configs/vit-b-16.yaml` are the paper's setting as far as it is known, every choice of ours marked.
Here each is run end to end, from a Hugging Face checkpoint with random weights to a report, on {PICTURES} drawn pictures of 224 x 224 with CLIP's own tokenizer and 77 tokens of context: {CALIBRATION} samples of calibration, {STEPS} training steps of {BATCH} pairs for each of two runs.
Random weights make the accuracies meaningless and the figures below right: no cost depends on the values.
"""


def section(model: str, binaries: Path, scratch: Path) -> str:
    shape = publish(model, scratch / "published")
    rows = [imported(binaries, scratch)]
    flags = settings(model, scratch)
    # Before anything is made: a fresh stage has nothing to forecast.
    forecast = call(binaries / "upcycle-upcycle", *flags, "--dry-run").splitlines()
    for stage in STAGES:
        print(f"{model}: {stage}", file=sys.stderr, flush=True)
        call(binaries / f"upcycle-{stage}", *flags)
        rows += nodes(scratch / "artifacts" / stage, stage)
    speed = json.loads(call(binaries / "upcycle-inspect", "speed", "moe-eesd", "--steps", STEPS,
                            "--json", *flags[:-2]))
    return "\n".join([
        f"## {model}", "", machine(), "",
        "```", *[line for line in forecast if not line.startswith(("  ", "upcycle "))], "```", "",
        "| stage | seconds | peak memory | on disk |", "|---|---|---|---|",
        *[f"| {r['node']} | {r['wall']:.1f} | {r['rss'] / 2**30:.1f} GiB | {size(r['disk'])} |"
          for r in rows],
        "", *estimate(shape, speed), ""])


def publish(model: str, folder: Path) -> dict:
    """A CLIPModel of this size with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(1)
    patch = int(model.rsplit("-", 1)[1])
    config = CLIPConfig(vision_config={"patch_size": patch},
                        text_config={"vocab_size": 49408, "hidden_act": "quick_gelu",
                                     "bos_token_id": 49406, "eos_token_id": 49407})
    CLIPModel(config).save_pretrained(folder)
    return {"vision": (768, 12, 3072, (224 // patch) ** 2 + 1), "text": (512, 12, 2048, 77)}


def imported(binaries: Path, scratch: Path) -> dict:
    start = time.monotonic()
    peak = int(call(
        sys.executable, "-S", "-c", PEAK, binaries / "upcycle-import", "--from",
        scratch / "published", "--tokenizer", VOCABULARY, "--preprocess", "openai", "--out",
        scratch / "dense"))
    return {"node": "import", "wall": time.monotonic() - start, "rss": peak,
            "disk": disk(scratch / "dense")}


# Prints the peak memory of a command. Run by a process of its own: a child's peak begins with
# that of whoever starts it, and this one has a model in it.
PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(status != 0)
"""


def settings(model: str, scratch: Path) -> list:
    sets = {"dataset.like": scratch / "dense", "pretrain.checkpoint": scratch / "dense"}
    flags = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return ["--config", ROOT / f"configs/{model}.yaml", "--profile", "trial", *flags,
            "--artifacts", scratch / "artifacts", "--jobs", 1]


def nodes(folder: Path, stage: str) -> list:
    found = []
    for manifest in sorted(folder.glob("**/current/manifest.json")):
        content = json.loads(manifest.read_text())
        provenance = content["provenance"]
        name = f"{stage} {content.get('run') or ''}".strip()
        found.append({"node": name, "wall": provenance["wall"], "rss": provenance["peak_rss"],
                      "disk": disk(manifest.parent.resolve())})
    return found


def estimate(shape: dict, speed: dict) -> list:
    """What the paper's 1.3 B samples cost, from operations and from the measured step."""
    tokens_per_caption = 77
    flops = 0
    for width, layers, hidden, tokens in shape.values():
        attention = 8 * width * width + 4 * tokens * width
        dense, mixture = 4 * width * hidden, 2 * 4 * width * hidden
        flops += tokens * (layers * attention + layers // 2 * (dense + mixture))
    total = 3 * flops * PAPER_SAMPLES
    lines = [
        f"A training sample costs about {3 * flops / 1e9:.0f} GFLOP forward and backward (top-2 of "
        f"8 experts in every second block, captions counted at all {tokens_per_caption} tokens), "
        f"the paper's {PAPER_SAMPLES / 1e9:.1f} B samples {total:.1e} FLOP.",
    ]
    seconds = speed["rows"][0]["median_ms"] / 1000
    rate = speed["batch"] / seconds
    lines.append(
        f"A step of {speed['batch']} pairs with self-distillation takes {seconds:.1f} s here "
        f"(`upcycle-inspect speed moe-eesd`, {speed['peak_bytes'] / 2**30:.1f} GiB), {rate:.2f} pairs a "
        f"second: {PAPER_SAMPLES / rate / 86400 / 365:.0f} years for all of it. Two cores upcycle "
        "and check a ViT-B; they do not train it.")
    lines += ["", "| hardware | days for one run of 1.3 B samples, estimated |", "|---|---|"]
    lines += [f"| {name} at {share:.0%} of its peak | {total / (peak * share) / 86400:.1f} |"
              for name, (peak, share) in HARDWARE.items()]
    lines += ["", "The estimate is arithmetic, not a measurement; docs/gpu.md has what was measured on a card."]
    return lines


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} cores of {cpu}; load before the run {os.getloadavg()[0]:.1f}."


def disk(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count > 2**28 else f"{count / 2**20:.1f} MiB"


def call(*words) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
