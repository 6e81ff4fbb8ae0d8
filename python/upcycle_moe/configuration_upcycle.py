"""The shape of an upcycle model as a Hugging Face configuration."""

from transformers import PretrainedConfig


class UpcycleClipConfig(PretrainedConfig):
    """The content of `config.json`: the keys that docs/checkpoints.md describes.

    `vision` and `text` are the towers, `moe` is the placement of MoE layers or None in a dense
    model. The defaults are open_clip's ViT-B-32.
    """

    model_type = "upcycle_clip"

    def __init__(self, embed_dim=512, activation="gelu", vision=None, text=None, moe=None, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.activation = activation
        self.vision = vision or {
            "image_size": 224, "patch": 32, "width": 768, "layers": 12, "heads": 12, "hidden": 3072}
        self.text = text or {
            "context": 77, "vocabulary": 49408, "width": 512, "layers": 12, "heads": 8, "hidden": 2048}
        self.moe = moe

    def shape(self):
        """The keys of upcycle's own `config.json`."""
        keys = ("embed_dim", "activation", "vision", "text", "moe")
        return {key: getattr(self, key) for key in keys}
