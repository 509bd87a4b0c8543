"""A pipeline's text encoders and image encoders by their transformers class names."""

from bridge.towers import clip_image, clip_text, clip_text_projection, t5_text

_TEXT = (clip_text, clip_text_projection, t5_text)
TEXT_TOWERS = {family.ARCHITECTURE: family.encode for family in _TEXT}
"""transformers class name -> its ``encode(module, ids, layers, mask)``."""

TOKENIZERS = {family.ARCHITECTURE: family.TOKENIZER for family in _TEXT}
"""transformers class name -> that of its tokenizer."""

IMAGE_TOWERS = {clip_image.ARCHITECTURE: clip_image.encode}
"""transformers class name -> its ``encode(module, pixels, layers)``."""
