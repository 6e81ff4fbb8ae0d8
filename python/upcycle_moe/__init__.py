"""Runs the models that `upcycle-export --layout upcycle` writes, in PyTorch.

    from upcycle_moe import load
    model = load("moe")
    out = model(pixel_values, input_ids)      # image_embeds, text_embeds, logits_per_image

Importing the package also registers the models with transformers, where it is installed:
`AutoModel.from_pretrained("moe")` then works without `trust_remote_code`.
"""

import importlib.util
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from .network_upcycle import Clip

__all__ = ["Clip", "load", "save"]

SHAPE = ("embed_dim", "activation", "vision", "text", "moe")


def load(folder):
    """Reads a checkpoint; every tensor must be there, fit, and be used."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if "embed_dim" not in config:
        raise ValueError(
            f"{folder / 'config.json'} has no embed_dim, so it is not an upcycle model: "
            "expected a folder that upcycle-export --layout upcycle or upcycle-import wrote")
    model = Clip({key: config.get(key) for key in SHAPE})

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
    (folder / "config.json").write_text(json.dumps(model.shape, indent=2) + "\n")


def register():
    """Makes the Auto classes of transformers know upcycle's models."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForZeroShotImageClassification,
    )

    from .configuration_upcycle import UpcycleClipConfig
    from .image_processing_upcycle import UpcycleImageProcessor
    from .modeling_upcycle import UpcycleClipModel

    AutoConfig.register(UpcycleClipConfig.model_type, UpcycleClipConfig)
    AutoModel.register(UpcycleClipConfig, UpcycleClipModel)
    AutoModelForZeroShotImageClassification.register(UpcycleClipConfig, UpcycleClipModel)
    AutoImageProcessor.register(UpcycleClipConfig, UpcycleImageProcessor)


if importlib.util.find_spec("transformers"):
    register()
