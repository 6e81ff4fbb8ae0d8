"""upcycle's models in Hugging Face transformers, dense or MoE.

    model = AutoModel.from_pretrained("moe", trust_remote_code=True)

The parameters have the names of the checkpoint, so what `save_pretrained` writes is read by
upcycle again.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_upcycle import UpcycleClipConfig
from .network_upcycle import Towers


@dataclass
class UpcycleClipOutput(ModelOutput):
    """Fields of the same names as in transformers' CLIPOutput; what was not asked for is None."""

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class UpcycleClipModel(Towers, PreTrainedModel):
    """A CLIP with two towers and, where the configuration has them, MoE layers."""

    config_class = UpcycleClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["Block"]

    def __init__(self, config):
        super().__init__(config)
        self.assemble(config.shape())
        self.post_init()

    def _init_weights(self, module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def get_image_features(self, pixel_values, **kwargs):
        """Raw embeddings of pictures, [B, P]."""
        return self.embed_images(pixel_values)[0]

    def get_text_features(self, input_ids, attention_mask=None, **kwargs):
        """Raw embeddings of texts, [B, P]."""
        return self.embed_texts(input_ids)[0]

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        return_loss=None,
        return_dict=None,
        **kwargs,
    ):
        """Unit embeddings and scaled similarities.

        `attention_mask` changes nothing: padding follows the end of a text, and what follows the
        end is never seen. `return_loss` adds the symmetric contrastive loss of the batch.
        """
        image, text, logits, loss = None, None, None, None
        if pixel_values is not None:
            image = F.normalize(self.get_image_features(pixel_values), dim=-1)
        if input_ids is not None:
            text = F.normalize(self.get_text_features(input_ids), dim=-1)
        if image is not None and text is not None:
            logits = self.logit_scale.exp() * image @ text.T

        if return_loss:
            if logits is None:
                raise ValueError("return_loss needs both pixel_values and input_ids")
            own = torch.arange(logits.shape[0], device=logits.device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        out = UpcycleClipOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            text_embeds=text,
            image_embeds=image,
        )
        return out if return_dict or return_dict is None else out.to_tuple()
