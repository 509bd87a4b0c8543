"""One prompt as four tools read it: the weights they see, and the pictures they draw.

Writes dialects.png, from left to right: plain diffusers, stable-diffusion-webui, ComfyUI, compel.
"""

from PIL import Image

import bridge
from bridge.prompt import DIALECTS

PROMPT = "a ((red)) apple, [green] leaf"

strip = Image.new("RGB", (128 * len(DIALECTS), 128))
with bridge.Encoder("emoji-xl") as encoder:
    for place, dialect in enumerate(DIALECTS):
        report = encoder.tokens(PROMPT, dialect=dialect)  # loads no weights
        tower = report.towers[0]
        print(dialect, [(row.text, round(row.weight, 2)) for row in tower.rows if row.weight != 1])
        drawn = bridge.generate(PROMPT, dialect=dialect, seed=1, steps=8)
        strip.paste(drawn.images[0], (128 * place, 0))
strip.save("dialects.png")
