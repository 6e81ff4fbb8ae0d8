"""open_clip's evaluation transform for transformers, by Pillow.

transformers' CLIPImageProcessor is nearly the same. It differs by a level where it resizes with
torchvision, by a pixel where the excess to cut off is odd, and in transparent pictures. This
one has no such differences from upcycle.
"""

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import make_flat_list_of_images, to_numpy_array


class UpcycleImageProcessor(BaseImageProcessor):
    """Pictures to `pixel_values` [B, 3, S, S].

    `size` says what pictures are resized to: `shortest_edge` or `longest_edge`, which keep the
    aspect, or `height` and `width`, which do not. `crop_size` is S; the margin that is missing
    after `longest_edge` has the level `fill_color`. By the `convention` of `open_clip`, colors
    are resized weighted by alpha and the offset of the cut is rounded half to even; by that of
    `hugging_face`, pictures are laid over white before the resize and the offset is rounded
    down.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size=None,
        crop_size=None,
        resample=Image.Resampling.BICUBIC,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        fill_color=0,
        convention="open_clip",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = size or {"shortest_edge": 224}
        self.crop_size = crop_size or {"height": 224, "width": 224}
        self.resample = resample
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.fill_color = fill_color
        self.convention = convention

    def square(self, image):
        """One Pillow picture as RGB of the model's size."""
        transparent = "A" in image.getbands() or "transparency" in image.info
        keeps_alpha = transparent and self.convention == "open_clip"
        if transparent and not keeps_alpha:
            paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(paper, image.convert("RGBA"))
        # Pillow weights colors by alpha when it resizes RGBA.
        image = image.convert("RGBA" if keeps_alpha else "RGB")
        image = image.resize(self.extents(*image.size), self.resample).convert("RGB")

        side = self.crop_size["height"]
        if "longest_edge" in self.size:
            whole = self.size["longest_edge"]
            corner = (whole - image.width) // 2, (whole - image.height) // 2
            margin = Image.new("RGB", (whole, whole), (self.fill_color,) * 3)
            margin.paste(image, corner)
            image = margin
        # Python rounds half to even, as torchvision's CenterCrop does.
        rounded = round if self.convention == "open_clip" else int
        left, top = rounded((image.width - side) / 2), rounded((image.height - side) / 2)
        return image.crop((left, top, left + side, top + side))

    def extents(self, width, height):
        """Width and height after the resize."""
        if "height" in self.size:
            return self.size["width"], self.size["height"]
        if "longest_edge" in self.size:
            ratio = max(width, height) / self.size["longest_edge"]
            return max(round(width / ratio), 1), max(round(height / ratio), 1)
        side, short = self.size["shortest_edge"], min(width, height)
        return side * width // short, side * height // short

    def preprocess(self, images, return_tensors=None, **kwargs):
        """Pictures of Pillow, or arrays of levels from 0 to 255."""
        squares = []
        for image in make_flat_list_of_images(images):
            if not isinstance(image, Image.Image):
                image = Image.fromarray(to_numpy_array(image))
            squares.append(np.asarray(self.square(image), dtype=np.float32) / 255)
        mean, std = np.float32(self.image_mean), np.float32(self.image_std)
        pixels = ((np.stack(squares) - mean) / std).transpose(0, 3, 1, 2)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
