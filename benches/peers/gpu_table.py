"""Writes the numbers of `make gpu-check` as tables into docs/gpu.md.

    python3 benches/peers/gpu_table.py FOLDER docs/gpu.md

FOLDER has gpu-check.json of `upcycle-gpu-check` and, where PyTorch ran, gpu-torch.json of
`gpu.py`. What stands between the two marks in the document is replaced.
"""

import json
import math
import sys
from pathlib import Path

# Kernels of a profile that are shown, the slowest first.
KERNELS = 24
BEGIN, END = "<!-- make gpu-check writes from here -->", "<!-- to here -->"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def step_rows(ours, torch):
    """Our steps, each beside the best of PyTorch's for the same model."""
    rows = []
    for row in ours:
        name = row["step"].replace("vit-b-", "ViT-B/")
        if "error" in row:
            rows.append([name, row["error"].split(":")[0], "", "", "", ""])
            continue
        kind = row["step"].replace("moe-eesd", "moe").split()
        peers = [p for p in torch if "error" not in p and p["step"].split()[0] == kind[0]
                 and p["step"].split()[1] == kind[1] and p["step"].split()[-1] == kind[-1]]
        best = min(peers, key=lambda p: p["median_ms"], default=None)
        time = f"{row['median_ms']:.1f} [{row['low_ms']:.1f}, {row['high_ms']:.1f}]"
        peer = ["", "", ""]
        if best and "eesd" not in row["step"]:
            way = " ".join(best["step"].split()[2:-1] + [best["backend"].removeprefix("torch-")])
            peer = [f"{best['median_ms']:.1f} ({way})", f"{best['memory_mib']}",
                    f"{best['median_ms'] / row['median_ms']:.2f}"]
        rows.append([name, time, f"{row['tflops']:.0f}", f"{row['memory_mib']}", *peer])
    return rows


def overhead_rows(ours):
    """What distilling costs on top of the same mixture."""
    by_name = {row["step"]: row for row in ours if "error" not in row}
    for name, row in by_name.items():
        plain = by_name.get(name.replace("moe-eesd", "moe"))
        if "moe-eesd" in name and plain:
            time = 100 * (row["median_ms"] / plain["median_ms"] - 1)
            memory = 100 * (row["memory_mib"] / plain["memory_mib"] - 1)
            yield [name.replace("vit-b-", "ViT-B/").replace(" moe-eesd", ""), f"{time:+.1f} %", f"{memory:+.1f} %"]


def kernel_row(row, copied):
    """A kernel's time, and how fast it moves its arguments."""
    rate = row["gigabytes_per_second"]
    return [row["kernel"], f"{row['calls']}", f"{row['ms']:.2f}", f"{rate:.0f}", f"{100 * rate / copied:.0f} %"]


def document(check, torch):
    rows = check["rows"]
    take = lambda key: [row for row in rows if key in row]
    heading = f"{check['card']}" + (f"; PyTorch {torch['torch']} on {torch['card']}" if torch else "")
    parts = [heading + "."]
    agreement = [[r["backend"], r["check"], f"{r['loss_gap']:.1e}", f"{r['gradient_gap']:.1e}",
                  "yes" if r["same_bits"] else "no"] for r in take("check")]
    pipeline = [[r["backend"], r["pipeline"], f"{r['loss']:.5f}", f"{r['cpu_loss']:.5f}", f"{r['loss_gap']:.1e}"]
                for r in take("pipeline")]
    products = [[r["product"], f"{r['m']} × {r['n']} × {r['k']}", f"{r['tflops']:.1f}", f"{100 * r['of_square']:.1f} %"]
                for r in take("product")]
    copies = [[r["copy"], f"{r['gigabytes_per_second']:.0f}"] for r in take("copy")]
    copied = max((r["gigabytes_per_second"] for r in take("copy")), default=math.nan)
    kernels = [kernel_row(r, copied) for r in take("profile")[:KERNELS]]
    steps = step_rows(take("step"), torch["rows"] if torch else [])
    rates = [[r["step"].replace("vit-b-", "ViT-B/"), f"{r['encoded_per_second']:.0f}", f"{r['recorded_per_second']:.0f}"]
             for r in take("step") if "error" not in r]
    for head, body in [
        (["backend", "model", "loss", "gradient", "same bits twice"], agreement),
        (["backend", "training", "loss", "on processors", "apart"], pipeline),
        (["copy", "GB/s, read and written"], copies),
        (["product", "m × n × k", "TFLOP/s", "of the square one"], products),
        (["model, batch", "ours, ms", "TFLOP/s", "MiB", "PyTorch's best, ms", "MiB", "times as fast"], steps),
        (["distilling, batch", "time", "memory"], list(overhead_rows(take("step")))),
        (["model, batch", "pictures encoded per second", "recorded per second"], rates),
        (["kernel of a step", "calls", "ms", "GB/s", "of the copy"], kernels),
    ]:
        if body:
            parts.append(table(head, body))
    return "\n\n".join(parts)


def main():
    folder, path = Path(sys.argv[1]), Path(sys.argv[2])
    check = json.loads((folder / "gpu-check.json").read_text())
    peer = folder / "gpu-torch.json"
    torch = json.loads(peer.read_text()) if peer.exists() else None
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{path} does not have the marks {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{document(check, torch)}\n\n{END}{rest.split(END)[1]}")
    print(document(check, torch))


if __name__ == "__main__":
    main()
