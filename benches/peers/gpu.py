"""Training steps of CLIP in PyTorch on a card, beside those of `upcycle-gpu-check`.

The same shapes, losses and JSON fields: ViT-B/32 and ViT-B/16, dense and with eight experts
in every second block, bf16 autocast over f32 weights, scaled_dot_product_attention, fused
AdamW; eager and compiled (dense models whole, mixtures block by block: whole ones take
minutes to compile or fail). Mixtures run twice: as a loop over experts that gathers each one's
tokens, and grouped, with tokens sorted by expert and torch._grouped_mm over all experts.
Batches lie on the card already.

    python3 benches/peers/gpu.py --out gpu-torch.json
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

WARM_UP = 3


class Router(nn.Module):
    """Softmax over experts and the K largest, renormalized; keeps the balance loss."""

    def __init__(self, width, experts, top_k):
        super().__init__()
        self.top_k, self.experts = top_k, experts
        self.linear = nn.Linear(width, experts, bias=False)
        self.balance = None

    def forward(self, x):
        probability = F.softmax(self.linear(x).float(), dim=-1)
        gates, chosen = probability.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        counts = F.one_hot(chosen, self.experts).sum((0, 1))
        share = counts / (self.top_k * len(x))
        self.balance = self.experts * (share * probability.mean(0)).sum()
        return gates, chosen, counts


class LoopExperts(nn.Module):
    """The common per-expert index loop."""

    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.router = Router(width, experts, top_k)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), QuickGelu(), nn.Linear(hidden, width))
            for _ in range(experts)
        )

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        gates, chosen, _ = self.router(x)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == index)
            own = expert(x[token]) * gates[token, rank, None].to(x.dtype)
            out.index_add_(0, token, own.to(out.dtype))
        return out.reshape(shape)


class GroupedExperts(nn.Module):
    """Tokens sorted by expert, one grouped product per linear layer."""

    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.router = Router(width, experts, top_k)
        self.fc1 = nn.Parameter(torch.randn(experts, hidden, width) / math.sqrt(width))
        self.b1 = nn.Parameter(torch.zeros(experts, hidden))
        self.fc2 = nn.Parameter(torch.randn(experts, width, hidden) / math.sqrt(hidden))
        self.b2 = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1]).to(torch.bfloat16)
        gates, chosen, counts = self.router(x)
        k = gates.shape[1]
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        token, expert = order // k, flat[order]
        bounds = counts.cumsum(0).to(torch.int32)
        fc1, fc2 = self.fc1.to(torch.bfloat16), self.fc2.to(torch.bfloat16)
        hidden = torch._grouped_mm(x[token], fc1.transpose(1, 2), offs=bounds)
        hidden = quick_gelu(hidden + self.b1.to(torch.bfloat16)[expert])
        own = torch._grouped_mm(hidden, fc2.transpose(1, 2), offs=bounds)
        own = (own + self.b2.to(torch.bfloat16)[expert]) * gates.flatten()[order, None].to(torch.bfloat16)
        return torch.zeros_like(x).index_add_(0, token, own).reshape(shape)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


class QuickGelu(nn.Module):
    def forward(self, x):
        return quick_gelu(x)


class Block(nn.Module):
    def __init__(self, width, heads, hidden, causal, experts):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = (
            experts(width, hidden, 8, 2)
            if experts
            else nn.Sequential(nn.Linear(width, hidden), QuickGelu(), nn.Linear(hidden, width))
        )

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.ln_1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(a.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.ln_2(x))


def blocks(width, heads, hidden, causal, experts):
    every_second = lambda i: experts if i % 2 else None
    return nn.Sequential(*(Block(width, heads, hidden, causal, every_second(i)) for i in range(12)))


class Clip(nn.Module):
    def __init__(self, patch, experts=None):
        super().__init__()
        tokens = (224 // patch) ** 2 + 1
        self.conv = nn.Conv2d(3, 768, patch, patch, bias=False)
        self.cls = nn.Parameter(torch.randn(768) * 768**-0.5)
        self.vision_position = nn.Parameter(torch.randn(tokens, 768) * 0.1)
        self.ln_pre, self.ln_post = nn.LayerNorm(768), nn.LayerNorm(768)
        self.vision_blocks = blocks(768, 12, 3072, False, experts)
        self.vision_proj = nn.Parameter(torch.randn(768, 512) * 0.1)
        self.token = nn.Embedding(49408, 512)
        self.text_position = nn.Parameter(torch.randn(77, 512) * 0.01)
        self.text_blocks = blocks(512, 8, 2048, True, experts)
        self.ln_final = nn.LayerNorm(512)
        self.text_proj = nn.Parameter(torch.randn(512, 512) * 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, pixels):
        x = self.conv(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), 1, -1).to(x.dtype), x], 1) + self.vision_position
        return self.ln_post(self.vision_blocks(self.ln_pre(x))[:, 0]) @ self.vision_proj

    def forward(self, pixels, ids):
        image = self.images(pixels)
        y = self.text_blocks(self.token(ids) + self.text_position)
        text = self.ln_final(y[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]) @ self.text_proj
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def operations(patch, moe, batch):
    """As `upcycle-gpu-check` counts them."""
    forward = 0.0
    for d, h, t, seen in [(768, 3072, (224 // patch) ** 2 + 1, 1.0), (512, 2048, 77, 0.5)]:
        ffn = 2 * d * h * (18 if moe else 12)
        forward += t * 2 * (12 * (4 * d * d + 2 * d * t * seen) + ffn)
    forward += 2 * ((224 // patch) ** 2) * 3 * patch**2 * 768
    return 3 * forward * batch


def step(model, optimizer, pixels, ids, layers):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(pixels, ids)
        if layers:
            loss = loss + 0.01 * sum(layer.balance for layer in layers) / len(layers)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def measure(name, patch, experts, batch, compiled, steps):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(1)
    model = Clip(patch, experts).cuda()
    layers = [m for m in model.modules() if isinstance(m, Router)]
    decays = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decays, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    pixels = torch.randn(batch, 3, 224, 224, device="cuda")
    ids = torch.randint(1, 49406, (batch, 77), device="cuda")
    ids[:, -1] = 49407
    if compiled and experts is None:
        model.compile()
    elif compiled:
        # Block by block: 24 blocks share what four of them compile to. The loop's shapes
        # change with every step: they are symbols, or each would be compiled.
        for block in model.modules():
            if isinstance(block, Block):
                block.compile(dynamic=True if experts is LoopExperts else None)
    times, loss = [], float("nan")
    clock = time.perf_counter()
    for index in range(WARM_UP + steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step(model, optimizer, pixels, ids, layers)
        torch.cuda.synchronize()
        if index >= WARM_UP:
            times.append(1e3 * (time.perf_counter() - start))
    took = time.perf_counter() - clock
    times.sort()
    median = times[len(times) // 2]
    row = {
        "step": name, "backend": "torch-compile" if compiled else "torch-eager",
        "median_ms": median, "low_ms": times[0], "high_ms": times[-1],
        "pairs_per_second": 1e3 * batch / median,
        "tflops": operations(patch, bool(experts), batch) / median / 1e9,
        "memory_mib": torch.cuda.max_memory_reserved() >> 20, "loss": loss,
    }
    print(f"step {name:30} {row['backend']:13} {median:8.1f} ms [{times[0]:.1f}, {times[-1]:.1f}] "
          f"{row['pairs_per_second']:7.0f} pairs/s {row['tflops']:6.1f} TFLOP/s {row['memory_mib']:6} MiB "
          f"loss {loss:.3f} (all took {took:.0f} s)", flush=True)
    return row


def write(path, rows):
    """After every row: what was measured is never lost to a later failure."""
    if path:
        with open(path, "w") as file:
            json.dump({"card": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", help="write the numbers as JSON here")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="", help="only models whose name contains this")
    parser.add_argument("--compile", action="store_true", help="compiled models too (minutes)")
    parser.add_argument("--budget", type=float, default=math.inf,
                        help="seconds after which no further model is started")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    kinds = [("dense", None), ("moe loop", LoopExperts), ("moe grouped", GroupedExperts)]
    rows, clock = [], time.perf_counter()
    jobs = [
        (batch, compiled, patch, kind)
        for batch in [256, 1024]
        for compiled in ([False, True] if arguments.compile else [False])
        for patch in [32, 16]
        for kind in kinds
    ]
    # What compiles worst comes last, where a budget may cut it off.
    jobs.sort(key=lambda job: job[1] and job[3][1] is LoopExperts)
    for batch, compiled, patch, (kind, experts) in jobs:
        name = f"vit-b-{patch} {kind} {batch}"
        if arguments.model not in name:
            continue
        if time.perf_counter() - clock > arguments.budget:
            rows.append({"step": name, "compiled": compiled, "error": "not started: no time left"})
            continue
        try:
            rows.append(measure(name, patch, experts, batch, compiled, arguments.steps))
        except Exception as error:  # A row that cannot run is an answer.
            text = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            print(f"step {name:30} {text}", flush=True)
            rows.append({"step": name, "compiled": compiled, "error": text})
        torch._dynamo.reset()
        write(arguments.out, rows)


if __name__ == "__main__":
    main()
