"""Training steps against PyTorch: dense, mixture, and what self-distillation adds."""

import json
import subprocess
import sys
from pathlib import Path

from harness import Bench, Measure, Row, Scaling

STEPS = 5
BATCH = 128
SMALL = {
    "embed_dim": 64,
    "vision": {"patch": 8, "width": 64, "layers": 4, "heads": 2, "hidden": 256},
    "text": {"width": 64, "layers": 2, "heads": 2, "hidden": 256},
}
LARGE = {
    "embed_dim": 128,
    "vision": {"patch": 4, "width": 128, "layers": 6, "heads": 2, "hidden": 512},
    "text": {"width": 128, "layers": 4, "heads": 2, "hidden": 512},
}
DATA = {"image_size": 32, "context": 16, "vocabulary": 1500}


def rows(bench: Bench) -> list:
    found = []
    for size, model, experts in (("default", SMALL, 4), ("larger", LARGE, 8)):
        vision = model["vision"]
        shapes = (
            f"Batch {BATCH}, 32 x 32 pixels in patches of {vision['patch']}, width "
            f"{vision['width']}, {vision['layers']} and {model['text']['layers']} blocks, 16 "
            "tokens a caption, all of them real. Forward, loss, backward, clipping, AdamW; "
            f"median of {STEPS} steps after 2."
        )
        found.append(Row(
            name=f"training-dense-{size}",
            title=f"Dense CLIP training step, {size} model",
            note=f"{shapes}\nPyTorch eager with scaled_dot_product_attention and fused AdamW.",
            peer="PyTorch",
            contenders={
                "PyTorch": torch(bench, model, None), "upcycle": ours(bench, model, "dense", 4),
            },
            targets={"upcycle": 1.0},
            warm_up=False,
        ))
        found.append(Row(
            name=f"training-moe-{size}",
            title=f"MoE training step, {size} model, E = {experts}, K = 2",
            note=f"{shapes}\nMixture in every second block of both towers; PyTorch loops over "
            "the experts and gathers each one's tokens.",
            peer="PyTorch",
            contenders={
                "PyTorch": torch(bench, model, [experts, 2]),
                "upcycle": ours(bench, model, "moe", experts),
            },
            targets={"upcycle": 1.5},
            warm_up=False,
        ))
        found.append(Row(
            name=f"training-eesd-{size}",
            title=f"What self-distillation adds, {size} model, E = {experts}, K = 2",
            note=f"{shapes}\nA twentieth of the tokens as in pipeline.yaml, the most uncertain, with "
            "the EMA of routers and experts as teacher. The paper reports +5.3 % time, a ratio of "
            "0.95, and +2.8 % memory.\n"
            "The teacher's products alone are a share of E / 3K of the experts' at a token each: "
            f"{100 * 0.05 * experts / 6:.0f} % of them here, twice that on a tenth.",
            peer="upcycle, MoE",
            contenders={
                "upcycle, MoE": ours(bench, model, "moe", experts),
                "with EESD": ours(bench, model, "moe-eesd", experts),
                "with EESD on a tenth": ours(bench, model, "moe-eesd", experts, tokens=0.1),
            },
            targets={"with EESD": 0.95},
            warm_up=False,
        ))
    return [*found, *scaling(bench)]


def scaling(bench: Bench) -> list[Scaling]:
    """Time by batch, by tokens of a picture, by experts and by threads."""

    def point(batch=BATCH, side=32, experts=4, threads=None):
        return ours(bench, SMALL, "moe", experts, batch, side, threads)

    note = "MoE training step of the default model, E = 4, K = 2 unless told."
    return [
        Scaling("training-scaling-samples", "MoE step by pairs a batch", note,
                {f"{b} pairs": (b, point(batch=b)) for b in (64, 128, 256)}),
        Scaling("training-scaling-tokens", "MoE step by image tokens",
                f"{note} Pictures of 32, 48 and 64 pixels; the text tower is part of the time.",
                {f"{(s // 8) ** 2 + 1} tokens": ((s // 8) ** 2 + 1, point(side=s))
                 for s in (32, 48, 64)}),
        Scaling("training-scaling-experts", "MoE step by experts",
                f"{note} K stays 2: the arithmetic is the same, only its pieces get smaller.",
                {f"E = {e}": (e, point(experts=e)) for e in (4, 8, 16)}),
        Scaling("training-scaling-threads", "MoE step by threads",
                f"{note} The size is 1 / threads.",
                {f"{t} threads": (1 / t, point(threads=t)) for t in (1, 2)}),
    ]


def torch(bench: Bench, model: dict, moe: list | None):
    def run(turn: int) -> Measure:
        given = json.dumps({
            "shape": model | DATA, "batch": BATCH, "moe": moe, "steps": STEPS,
            "threads": bench.threads,
        })
        script = Path(__file__).resolve().parents[1] / "step.py"
        done = subprocess.run(
            [sys.executable, str(script), given], capture_output=True, text=True, check=True
        )
        line = json.loads(done.stdout)
        return Measure(line["seconds"], extra={"peak MB": line["peak_bytes"] / 1e6})

    return run


def ours(bench, model, variant, experts, batch=BATCH, side=32, threads=None, tokens=0.05):
    settings = {
        "train.eesd.tokens": tokens,
        "model.embed_dim": model["embed_dim"], "moe.experts": experts, "moe.top_k": 2,
        "dataset.image_size": side, "train.optim.batch": batch,
    }
    for tower in ("vision", "text"):
        settings |= {f"model.{tower}.{key}": value for key, value in model[tower].items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def run(turn: int) -> Measure:
        answer = json.loads(bench.ours(
            "upcycle-inspect", "speed", variant, "--steps", STEPS,
            "--threads", threads or bench.threads, "--json", *sets,
        ))
        seconds = answer["rows"][0]["median_ms"] / 1e3
        return Measure(seconds, extra={"peak MB": answer["peak_bytes"] / 1e6})

    return run
