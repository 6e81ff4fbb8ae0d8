"""Data-aware subspaces against the literal Cholesky + SVD route (SVD-LLM) in PyTorch."""

import json

import numpy as np
from safetensors.numpy import save_file

from harness import Bench, Measure, Row, Scaling, clock, cpu

D, H, EXPERTS, TOKENS, TAU = 768, 3072, 2, 8_192, 0.99


def rows(bench: Bench) -> list:
    import torch

    torch.set_num_threads(bench.threads)
    data = layer(TOKENS, EXPERTS)
    save(data, bench.scratch)
    tensors = {name: torch.from_numpy(value) for name, value in data.items()}

    def peer(dtype):
        def run(turn: int) -> Measure:
            before = cpu()
            seconds, kept = clock(lambda: literal(tensors, dtype))
            extra = {"CPU s": cpu() - before, "mean rank": mean_rank(kept)}
            return Measure(seconds, retained(tensors, kept), extra)
        return run

    comparison = Row(
        name="subspaces",
        title="Data-aware subspaces of a layer",
        note=(
            f"A part of a ViT-B/16 vision tower: {EXPERTS} of 8 experts of one of 12 layers, × 2 "
            f"matrices ([{H}, {D}] on the layer's inputs, [{D}, {H}] on its hidden "
            f"activations), {TOKENS // EXPERTS:,} tokens an expert, τ = {TAU}; the tower is 48 "
            "times this.\n"
            "From inputs in memory to the expert's matrix W_i. The peer is the published "
            "route: G = X Xᵀ, Cholesky root S, SVD of W S, W_i = U_r Σ_r V_rᵀ S⁻¹; ours takes "
            "the eigenvectors U_r of W G Wᵀ, W_i = U_r U_rᵀ W.\n"
            "`CPU s` of ours counts reading and writing files too; the time does not.\n"
            "Quality is the energy that the matrices retain on their own tokens, computed "
            "in f64 from the matrices themselves."
        ),
        peer="PyTorch, f32",
        contenders={
            "PyTorch, f32": peer(torch.float32),
            "PyTorch, f64": peer(torch.float64),
            "upcycle": lambda turn: ours(bench, bench.scratch, tensors),
        },
        targets={"upcycle": 5.0},
        quality="retained energy",
        warm_up=False,
    )
    return [comparison, *scaling(bench)]


def scaling(bench: Bench) -> list[Scaling]:
    """Time by tokens, experts and threads."""
    def point(tokens: int, experts: int, threads: int):
        folder = bench.scratch / f"{tokens}-{experts}"
        if not folder.exists():
            folder.mkdir()
            save(layer(tokens, experts), folder)
        return lambda turn: ours(bench, folder, None, threads)

    note = f"Both matrices of a layer ([{H}, {D}] and [{D}, {H}])."
    return [
        Scaling(
            "subspaces-scaling-samples", "Subspaces by tokens",
            f"{note} 4 experts; eigenproblems do not depend on tokens, moments do.",
            {f"{n:,} tokens": (n, point(n, 4, bench.threads)) for n in (8192, 16384, 32768)},
        ),
        Scaling(
            "subspaces-scaling-experts", "Subspaces by experts", f"{note} 8,192 tokens.",
            {f"{e} experts": (e, point(8192, e, bench.threads)) for e in (2, 4, 8)},
        ),
        Scaling(
            "subspaces-scaling-threads", "Subspaces by threads",
            f"{note} 8,192 tokens, 4 experts. The size is 1 / threads.",
            {f"{t} threads": (1 / t, point(8192, 4, t)) for t in (1, 2)},
        ),
    ]


def layer(tokens: int, experts: int) -> dict[str, np.ndarray]:
    """Weights, inputs with a decaying spectrum, their hidden activations, and labels."""
    import torch

    random = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=random)
    fc1, fc2 = 0.04 * normal(H, D), 0.02 * normal(D, H)
    scales = torch.linspace(0, 4, D).neg().exp()
    labels = torch.arange(tokens) % experts
    turn = torch.linalg.qr(normal(experts, D, D))[0]
    x = torch.empty(tokens, D)
    for expert in range(experts):
        own = labels == expert
        x[own] = (normal(int(own.sum()), D) * scales + 0.3 * normal(1, D)) @ turn[expert]
    hidden = torch.nn.functional.gelu(x @ fc1.T)
    values = {"fc1": fc1, "fc2": fc2, "x": x, "hidden": hidden, "labels": labels}
    return {name: value.contiguous().numpy() for name, value in values.items()}


def save(data: dict[str, np.ndarray], folder) -> None:
    save_file({name: data[name] for name in ("fc1", "fc2")}, folder / "w.safetensors")
    save_file({name: data[name] for name in ("x", "hidden")}, folder / "x.safetensors")
    save_file({"labels": data["labels"]}, folder / "l.safetensors")


def literal(tensors, dtype) -> list:
    """The published route for every expert and both matrices: (matrix, expert, W_i, rank)."""
    import torch

    kept = []
    for name, inputs in (("fc1", "x"), ("fc2", "hidden")):
        w = tensors[name].to(dtype)
        x = tensors[inputs].to(dtype)
        for expert in range(EXPERTS):
            own = x[tensors["labels"] == expert]
            gram = own.T @ own
            root, failed = torch.linalg.cholesky_ex(gram)
            jitter = 1e-6
            while failed:
                ridge = jitter * gram.diagonal().mean()
                eye = torch.eye(len(gram), dtype=dtype)
                root, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
                jitter *= 10
            u, s, vh = torch.linalg.svd(w @ root, full_matrices=False)
            tail = s.double().square().flip(0).cumsum(0)
            rank = len(s) - int((tail <= (1 - TAU) * tail[-1]).sum())
            product = (u[:, :rank] * s[:rank]) @ vh[:rank]
            approx = torch.linalg.solve_triangular(root, product, upper=False, left=False)
            kept.append((name, expert, approx, rank))
    return kept


def retained(tensors, kept) -> float:
    """1 - the relative squared output error on the own tokens, mean over the matrices."""
    import torch

    shares = []
    for name, expert, approx, _ in kept:
        x = tensors["x" if name == "fc1" else "hidden"]
        # Every eighth token is enough to tell, and cheap.
        own = x[tensors["labels"] == expert][::8].double()
        w = tensors[name].double()
        all_, lost = own @ w.T, own @ (w - approx.double()).T
        shares.append(1 - float(lost.square().sum() / all_.square().sum()))
    return sum(shares) / len(shares)


def mean_rank(kept) -> float:
    return sum(rank for *_, rank in kept) / len(kept)


def ours(bench: Bench, folder, tensors=None, threads=None) -> Measure:
    """One run of ours; seconds without reading and writing files."""
    before = cpu()
    line = json.loads(bench.ours(
        "upcycle-subspaces", "fit", "--tau", TAU, "--project", "--labels",
        folder / "l.safetensors", "--weight", f"{folder}/w.safetensors:fc1",
        "--vectors", f"{folder}/x.safetensors:x", "--weight", f"{folder}/w.safetensors:fc2",
        "--vectors", f"{folder}/x.safetensors:hidden", "--threads", threads or bench.threads,
        "--quiet", "--force", "--out", bench.scratch / "out",
    ))
    used = cpu() - before
    ranks = [rank for matrix in line["matrices"] for rank in matrix["ranks"]]
    quality = None
    if tensors is not None:
        from safetensors.torch import load_file

        found = load_file(bench.scratch / "out" / "projected.safetensors")
        kept = [(*key.rsplit(".", 1), value, 0) for key, value in found.items()]
        kept = [(name, int(expert), value, 0) for name, expert, value, _ in kept]
        quality = retained(tensors, kept)
    return Measure(line["seconds"]["work"], quality, {
        "CPU s": used,
        "mean rank": sum(ranks) / len(ranks),
        "peak MB": line["peak_bytes"] / 1e6,
    })
