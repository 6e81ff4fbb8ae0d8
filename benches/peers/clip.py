"""A CLIP in PyTorch, dense or with MoE layers, as one would write it for training.

open_clip's architecture: pre-norm blocks, scaled_dot_product_attention on packed qkv, exact
GELU. The mixture is the common per-expert index loop (Mixtral's in Hugging Face): tokens of
an expert are gathered, run through its two linears and added back, weighted.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Experts(nn.Module):
    """Router and E experts of the dense shape, top-K renormalised, dropless."""

    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )
        self.balance = torch.zeros(())

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probability = F.softmax(self.router(x), dim=-1)
        gates, chosen = probability.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        mask = F.one_hot(chosen, len(self.experts)).permute(2, 1, 0)
        share = mask.sum((1, 2)) / (self.top_k * len(x))
        self.balance = len(self.experts) * (share * probability.mean(0)).sum()
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rank, token = torch.where(mask[index])
            out.index_add_(0, token, expert(x[token]) * gates[token, rank, None])
        return out.reshape(shape)


class Block(nn.Module):
    def __init__(self, width, heads, hidden, causal, moe):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = (
            Experts(width, hidden, *moe)
            if moe
            else nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        )

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.ln_1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(a.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.ln_2(x))


def blocks(tower, causal, moe):
    return nn.Sequential(*(
        Block(tower["width"], tower["heads"], tower["hidden"], causal, moe if i % 2 else None)
        for i in range(tower["layers"])
    ))


class Clip(nn.Module):
    """`shape` is the `model` section of pipeline.yaml and the extents of the data."""

    def __init__(self, shape, moe=None):
        super().__init__()
        vision, text, embed = shape["vision"], shape["text"], shape["embed_dim"]
        tokens = (shape["image_size"] // vision["patch"]) ** 2 + 1
        self.conv = nn.Conv2d(3, vision["width"], vision["patch"], vision["patch"], bias=False)
        self.cls = nn.Parameter(torch.randn(vision["width"]) * vision["width"] ** -0.5)
        self.vision_position = nn.Parameter(torch.randn(tokens, vision["width"]) * 0.1)
        self.ln_pre, self.ln_post = nn.LayerNorm(vision["width"]), nn.LayerNorm(vision["width"])
        self.vision_blocks = blocks(vision, False, moe)
        self.vision_proj = nn.Parameter(torch.randn(vision["width"], embed) * 0.1)
        self.token = nn.Embedding(shape["vocabulary"], text["width"])
        self.text_position = nn.Parameter(torch.randn(shape["context"], text["width"]) * 0.01)
        self.text_blocks = blocks(text, True, moe)
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_proj = nn.Parameter(torch.randn(text["width"], embed) * 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels, ids):
        x = self.conv(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.vision_position
        x = self.ln_post(self.vision_blocks(self.ln_pre(x))[:, 0]) @ self.vision_proj
        y = self.text_blocks(self.token(ids) + self.text_position)
        y = self.ln_final(y[torch.arange(len(ids)), ids.argmax(-1)]) @ self.text_proj
        return F.normalize(x, dim=-1), F.normalize(y, dim=-1)

    def loss(self, pixels, ids, balance=0.0):
        image, text = self(pixels, ids)
        logits = self.logit_scale.exp() * image @ text.T
        own = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        layers = [m.balance for m in self.modules() if isinstance(m, Experts)]
        return loss + balance * sum(layers) / len(layers) if layers else loss


class Trainer:
    """One training step: forward, loss, backward, clipping, fused AdamW."""

    def __init__(self, model):
        self.model = model
        decays = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step(self, pixels, ids, balance=0.0):
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.model.loss(pixels, ids, balance)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return loss.item()
