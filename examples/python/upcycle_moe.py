"""Runs a checkpoint of upcycle, dense or MoE, in PyTorch.

    from upcycle_moe import load
    model = load("moe")                       # a folder of `upcycle-export --layout upcycle`
    out = model(pixel_values, input_ids)      # image_embeds, text_embeds, logits_per_image

Everything a fine-tuning needs is an ordinary module or parameter: `model.state_dict()` has the
names of the checkpoint (docs/checkpoints.md), so `save` writes what `upcycle-inspect forward`,
`upcycle-export` and `upcycle-import` read back.

Needs torch and safetensors. Reads `config.json` with `model.safetensors`, or with shards and
`model.safetensors.index.json`.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): OpenAI's models. A wrong activation costs accuracy silently."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class Mlp(nn.Module):
    """The FFN of a dense block."""

    def __init__(self, width, hidden, activation):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x):
        return self.c_proj(self.act(self.c_fc(x)))


class Stack(nn.Module):
    """One linear map an expert: weight [E, out, in], bias [E, out]."""

    def __init__(self, experts, inner, outer):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, outer, inner))
        self.bias = nn.Parameter(torch.zeros(experts, outer))


class Experts(nn.Module):
    """E FFNs in two stacks."""

    def __init__(self, experts, width, hidden, activation):
        super().__init__()
        self.c_fc = Stack(experts, width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.c_proj = Stack(experts, hidden, width)

    def one(self, expert, x):
        hidden = F.linear(x, self.c_fc.weight[expert], self.c_fc.bias[expert])
        return F.linear(self.act(hidden), self.c_proj.weight[expert], self.c_proj.bias[expert])


class Product(nn.Module):
    """One product of low rank an expert, up down: down [E, r, in], up [E, out, r]."""

    def __init__(self, experts, rank, inner, outer):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(experts, rank, inner))
        self.up = nn.Parameter(torch.zeros(experts, outer, rank))

    def one(self, expert, x):
        return F.linear(F.linear(x, self.down[expert]), self.up[expert])


class Deltas(nn.Module):
    """What tells E experts apart that share one FFN (`ders-lm`)."""

    def __init__(self, experts, rank, width, hidden):
        super().__init__()
        self.c_fc = Product(experts, rank, width, hidden)
        self.c_proj = Product(experts, rank, hidden, width)

    def one(self, expert, x, shared):
        hidden = shared.act(shared.c_fc(x) + self.c_fc.one(expert, x))
        return shared.c_proj(hidden) + self.c_proj.one(expert, hidden)


class Moe(nn.Module):
    """Softmax over E experts; the K largest, renormalised to sum to 1; no token is dropped."""

    def __init__(self, experts, top_k, width, hidden, activation, rank):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        if rank is None:
            self.experts = Experts(experts, width, hidden, activation)
        else:
            self.deltas = Deltas(experts, rank, width, hidden)

    def one(self, expert, x, shared):
        if shared is None:
            return self.experts.one(expert, x)
        return self.deltas.one(expert, x, shared)

    def forward(self, x, shared):
        rows = x.reshape(-1, x.shape[-1])
        # Probabilities in f32 whatever the model's type; ties go to the lower index.
        probabilities = self.router(rows).float().softmax(-1)
        order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        weights, chosen = order.values[:, : self.top_k], order.indices[:, : self.top_k]
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(rows)
        for expert in range(probabilities.shape[-1]):
            row, slot = torch.where(chosen == expert)
            if len(row):
                y = self.one(expert, rows[row], shared)
                out = out.index_add(0, row, y * weights[row, slot, None].to(y.dtype))
        return out.reshape(x.shape)


class Block(nn.Module):
    """Pre-norm: x += attention(ln_1 x); x += ffn(ln_2 x)."""

    def __init__(self, width, heads, hidden, activation, moe):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        rank = moe and moe.get("rank")
        self.moe = Moe(moe["experts"], moe["top_k"], width, hidden, activation, rank) if moe else None
        # The FFN of a dense block, or the one that experts of low rank share.
        self.mlp = Mlp(width, hidden, activation) if not moe or rank else None

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        ffn_in = self.ln_2(x)
        y = self.mlp(ffn_in) if self.moe is None else self.moe(ffn_in, self.mlp)
        return x + y, ffn_in


class Transformer(nn.Module):
    def __init__(self, tower, activation, moe, blocks):
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(tower["width"], tower["heads"], tower["hidden"], activation,
                  moe if index in blocks else None)
            for index in range(tower["layers"]))

    def forward(self, x, mask=None):
        inputs = []
        for block in self.resblocks:
            x, ffn_in = block(x, mask)
            inputs.append(ffn_in)
        return x, inputs


class Visual(nn.Module):
    def __init__(self, config, embed_dim, activation, moe):
        super().__init__()
        width, patch = config["width"], config["patch"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, width))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config, activation, moe, moe["vision_blocks"] if moe else [])
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([token, x], 1) + self.positional_embedding)
        x, inputs = self.transformer(x)
        return self.ln_post(x[:, 0]) @ self.proj, inputs


class Clip(nn.Module):
    """A CLIP under open_clip's names, with MoE layers where the configuration has them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        moe, activation, text = config.get("moe"), config["activation"], config["text"]
        width = text["width"]
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual = Visual(config["vision"], config["embed_dim"], activation, moe)
        self.token_embedding = nn.Embedding(text["vocabulary"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(text["context"], width))
        self.transformer = Transformer(text, activation, moe, moe["text_blocks"] if moe else [])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, config["embed_dim"]))

    def encode_text(self, ids):
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        x, inputs = self.transformer(x, mask)
        # The end of text has the largest id; argmax is the first of several.
        pooled = self.ln_final(x[torch.arange(len(x)), ids.argmax(-1)])
        return pooled @ self.text_projection, inputs

    def forward(self, pixel_values=None, input_ids=None, layers=False):
        """Unit embeddings, scaled similarities and, with `layers`, the input of every FFN."""
        out = {}
        if pixel_values is not None:
            raw, inputs = self.visual(pixel_values)
            out["image_embeds"] = F.normalize(raw, dim=-1)
            if layers:
                out |= {f"vision.layers.{i}.ffn_in": x for i, x in enumerate(inputs)}
        if input_ids is not None:
            raw, inputs = self.encode_text(input_ids)
            out["text_embeds"] = F.normalize(raw, dim=-1)
            if layers:
                out |= {f"text.layers.{i}.ffn_in": x for i, x in enumerate(inputs)}
        if len({"image_embeds", "text_embeds"} & out.keys()) == 2:
            out["logits_per_image"] = self.logit_scale.exp() * out["image_embeds"] @ out["text_embeds"].T
        return out


def load(folder):
    """Reads a checkpoint; every tensor must be there, fit, and be used."""
    folder = Path(folder)
    model = Clip(json.loads((folder / "config.json").read_text()))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors = {}
    for file in files:
        tensors |= load_file(folder / file)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def save(model, folder):
    """Writes a checkpoint that upcycle reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().float().contiguous().cpu() for name, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
