"""The network of upcycle's models, dense or MoE, in PyTorch alone.

Names and shapes of the parameters are those of the checkpoint (docs/checkpoints.md): open_clip's,
and in an MoE block a router with stacked experts. `Clip` is the model; `Towers` is everything of
it but the base class, so that a Hugging Face model can have the same names.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): OpenAI's models. A wrong activation costs accuracy silently."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def empty(*shape):
    """A parameter whose values `reset_parameters` of its module draws."""
    return nn.Parameter(torch.empty(shape))


def draw(parameter, bound):
    """Uniform values, as nn.Linear draws its own."""
    nn.init.uniform_(parameter, -bound, bound)


class Attention(nn.Module):
    """Self-attention under the parameter names of nn.MultiheadAttention.

    That module has a fast path of its own for inference, which does not export to ONNX.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = empty(3 * width, width)
        self.in_proj_bias = empty(3 * width)
        self.out_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)

    def forward(self, x, causal):
        batch, tokens, width = x.shape
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        parts = parts.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


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
    """One linear map per expert: weight [E, out, in], bias [E, out]."""

    def __init__(self, experts, inner, outer):
        super().__init__()
        self.weight = empty(experts, outer, inner)
        self.bias = empty(experts, outer)
        self.reset_parameters()

    def reset_parameters(self):
        bound = 1 / math.sqrt(self.weight.shape[-1])
        draw(self.weight, bound)
        draw(self.bias, bound)


class Experts(nn.Module):
    """E FFNs in two stacks."""

    def __init__(self, experts, width, hidden, activation):
        super().__init__()
        self.c_fc = Stack(experts, width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.c_proj = Stack(experts, hidden, width)

    def one(self, expert, x, shared):
        """The output of one expert for rows [n, d]."""
        hidden = F.linear(x, self.c_fc.weight[expert], self.c_fc.bias[expert])
        return F.linear(self.act(hidden), self.c_proj.weight[expert], self.c_proj.bias[expert])

    def all(self, x, shared):
        """The outputs of all experts for all rows: [n, d] to [E, n, d]."""
        hidden = x @ self.c_fc.weight.transpose(1, 2) + self.c_fc.bias[:, None]
        return self.act(hidden) @ self.c_proj.weight.transpose(1, 2) + self.c_proj.bias[:, None]


class Product(nn.Module):
    """One product of low rank per expert, up down: down [E, r, in], up [E, out, r]."""

    def __init__(self, experts, rank, inner, outer):
        super().__init__()
        self.down = empty(experts, rank, inner)
        self.up = empty(experts, outer, rank)
        self.reset_parameters()

    def reset_parameters(self):
        draw(self.down, 1 / math.sqrt(self.down.shape[-1]))
        nn.init.zeros_(self.up)

    def one(self, expert, x):
        return F.linear(F.linear(x, self.down[expert]), self.up[expert])

    def all(self, x):
        return x @ self.down.transpose(1, 2) @ self.up.transpose(1, 2)


class Deltas(nn.Module):
    """The differences between E experts that share one FFN (method `ders-lm`)."""

    def __init__(self, experts, rank, width, hidden):
        super().__init__()
        self.c_fc = Product(experts, rank, width, hidden)
        self.c_proj = Product(experts, rank, hidden, width)

    def one(self, expert, x, shared):
        hidden = shared.act(shared.c_fc(x) + self.c_fc.one(expert, x))
        return shared.c_proj(hidden) + self.c_proj.one(expert, hidden)

    def all(self, x, shared):
        hidden = shared.act(shared.c_fc(x) + self.c_fc.all(x))
        return shared.c_proj(hidden) + self.c_proj.all(hidden)


def exporting():
    """Whether the forward pass is being recorded for another runtime."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


class Moe(nn.Module):
    """Softmax over E experts; the K largest, renormalized to sum to 1; no token is dropped.

    `dispatch` says how tokens meet experts, with equal results: `index` gathers the tokens of each
    expert and computes K experts per token; `dense` computes all experts for all tokens, which
    needs no shape that depends on the data. `auto` is `dense` while the model is exported, and
    `index` otherwise.
    """

    def __init__(self, experts, top_k, width, hidden, activation, rank):
        super().__init__()
        self.top_k = top_k
        self.dispatch = "auto"
        self.router = nn.Linear(width, experts, bias=False)
        if rank is None:
            self.experts = Experts(experts, width, hidden, activation)
        else:
            self.deltas = Deltas(experts, rank, width, hidden)

    def forward(self, x, shared):
        rows = x.reshape(-1, x.shape[-1])
        # Probabilities are f32 whatever the type of the model is.
        probabilities = self.router(rows).float().softmax(-1)
        experts = self.deltas if shared is not None else self.experts

        dense = exporting() if self.dispatch == "auto" else self.dispatch == "dense"
        mix = self.dense if dense else self.index
        return mix(rows, probabilities, experts, shared).view_as(x)

    def dense(self, rows, probabilities, experts, shared):
        # An expert is chosen if fewer than K come before it: larger ones, and equal ones of a
        # lower index. Counting them needs comparisons alone, which every runtime has.
        mine, other = probabilities[:, :, None], probabilities[:, None, :]
        index = torch.arange(probabilities.shape[-1], device=rows.device)
        earlier = index[None, :] < index[:, None]
        before = (other > mine) | ((other == mine) & earlier)
        chosen = before.sum(-1) < self.top_k

        weights = torch.where(chosen, probabilities, 0.0)
        weights = (weights / weights.sum(-1, keepdim=True)).to(rows.dtype)
        return torch.einsum("ne,end->nd", weights, experts.all(rows, shared))

    def index(self, rows, probabilities, experts, shared):
        # A stable sort leaves the lower index first among equals.
        order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        weights, chosen = order.values[:, : self.top_k], order.indices[:, : self.top_k]
        weights = (weights / weights.sum(-1, keepdim=True)).to(rows.dtype).flatten()

        # Visits sorted by expert: one transfer of E counts to the host, not one per expert.
        visits = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=probabilities.shape[-1]).tolist()
        out = torch.zeros_like(rows)
        for expert, visit in enumerate(visits.split(counts)):
            if len(visit):
                row = visit // self.top_k
                y = experts.one(expert, rows[row], shared) * weights[visit, None]
                out = out.index_add(0, row, y)
        return out


class Block(nn.Module):
    """Pre-norm: x += attention(ln_1 x); x += ffn(ln_2 x)."""

    def __init__(self, width, heads, hidden, activation, moe):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        rank = moe and moe.get("rank")
        self.moe = Moe(moe["experts"], moe["top_k"], width, hidden, activation, rank) if moe else None
        # The FFN of a dense block, or the one that experts of low rank share.
        self.mlp = Mlp(width, hidden, activation) if not moe or rank else None

    def forward(self, x, causal):
        x = x + self.attn(self.ln_1(x), causal)
        ffn_in = self.ln_2(x)
        y = self.mlp(ffn_in) if self.moe is None else self.moe(ffn_in, self.mlp)
        return x + y, ffn_in


class Transformer(nn.Module):
    """The blocks of a tower."""

    def __init__(self, tower, activation, moe, blocks):
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(tower["width"], tower["heads"], tower["hidden"], activation,
                  moe if index in blocks else None)
            for index in range(tower["layers"]))

    def forward(self, x, causal):
        inputs = []
        for block in self.resblocks:
            x, ffn_in = block(x, causal)
            inputs.append(ffn_in)
        return x, inputs


class Visual(nn.Module):
    """The image tower: a ViT with a class token."""

    def __init__(self, config, embed_dim, activation, moe):
        super().__init__()
        width, patch = config["width"], config["patch"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.class_embedding = empty(width)
        self.positional_embedding = empty(tokens, width)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config, activation, moe, moe["vision_blocks"] if moe else [])
        self.ln_post = nn.LayerNorm(width)
        self.proj = empty(width, embed_dim)
        self.reset_parameters()

    def reset_parameters(self):
        std = len(self.proj) ** -0.5
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=std)

    def forward(self, pixels):
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([token, x], 1) + self.positional_embedding)
        x, inputs = self.transformer(x, causal=False)
        return self.ln_post(x[:, 0]) @ self.proj, inputs


class Towers:
    """Both towers of a CLIP, for a subclass that is a module as well."""

    def assemble(self, shape):
        """Adds the modules that a shape, the content of `config.json`, asks for."""
        moe, activation, text = shape.get("moe"), shape["activation"], shape["text"]
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation is {activation!r}, expected one of {known}")
        width = text["width"]
        self.logit_scale = empty()
        self.visual = Visual(shape["vision"], shape["embed_dim"], activation, moe)
        self.token_embedding = nn.Embedding(text["vocabulary"], width)
        self.positional_embedding = empty(text["context"], width)
        self.transformer = Transformer(text, activation, moe, moe["text_blocks"] if moe else [])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = empty(width, shape["embed_dim"])
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=len(self.text_projection) ** -0.5)

    def embed_images(self, pixel_values):
        """Raw embeddings [B, P], and the input of every FFN."""
        return self.visual(pixel_values)

    def embed_texts(self, input_ids):
        """Raw embeddings [B, P], and the input of every FFN.

        What follows the end of a text is not seen by what comes before, so no mask is needed.
        """
        length, context = input_ids.shape[1], self.positional_embedding.shape[0]
        if length > context:
            raise ValueError(
                f"input_ids has {length} tokens, the model takes at most {context}: "
                "give the tokenizer truncation=True")
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]
        x, inputs = self.transformer(x, causal=True)

        # The end of a text has the largest id; argmax is the first of several.
        end = input_ids.argmax(-1)
        rows = torch.arange(end.shape[0], device=end.device)
        return self.ln_final(x[rows, end]) @ self.text_projection, inputs


class Clip(Towers, nn.Module):
    """A CLIP under open_clip's names, with MoE layers where the shape has them."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.assemble(shape)

    def forward(self, pixel_values=None, input_ids=None, layers=False):
        """Unit embeddings, scaled similarities and, with `layers`, the input of every FFN."""
        out = {}
        if pixel_values is not None:
            raw, inputs = self.embed_images(pixel_values)
            out["image_embeds"] = F.normalize(raw, dim=-1)
            if layers:
                out |= {f"vision.layers.{i}.ffn_in": x for i, x in enumerate(inputs)}
        if input_ids is not None:
            raw, inputs = self.embed_texts(input_ids)
            out["text_embeds"] = F.normalize(raw, dim=-1)
            if layers:
                out |= {f"text.layers.{i}.ffn_in": x for i, x in enumerate(inputs)}
        if {"image_embeds", "text_embeds"} <= out.keys():
            similarity = out["image_embeds"] @ out["text_embeds"].T
            out["logits_per_image"] = self.logit_scale.exp() * similarity
        return out
