"""A prompt that changes on the way, two prompts in one picture, and prompts by place.

Writes changing.png: the three side by side.
"""

from PIL import Image

import bridge

# Any SD 1, 2 or XL that diffusers loads goes in its place.
pipe = bridge.load_pipeline("emoji-xl")
strip = Image.new("RGB", (3 * 128, 128))
draw = {"num_inference_steps": 12, "guidance_scale": 3.0}

# A cat for the first half of the steps, a dog for the rest.
plan = bridge.schedule("a [cat:dog:0.5]", steps=12, model=pipe)
strip.paste(pipe(**plan.kwargs(), **draw).images[0], (0, 0))

# Composable diffusion: each part has its own weight, and all draw the same picture.
both = bridge.compose("a cat AND a blue background :0.9", model=pipe)
with bridge.inject(pipe, both) as kwargs:  # the pipeline is as it was when the block ends
    strip.paste(pipe(**kwargs, **draw).images[0], (128, 0))

# Boxes are (left, top, right, bottom), as shares of the picture; a mask may stand in their place.
left = bridge.Region("two red apples", box=(0, 0, 0.5, 1))
right = bridge.Region("two green apples", box=(0.5, 0, 1, 1))
places = bridge.regional("two apples", [left, right], model=pipe)
with bridge.inject(pipe, places) as kwargs:
    strip.paste(pipe(**kwargs, **draw).images[0], (256, 0))
strip.save("changing.png")
print("cat and dog until the steps", plan.last_steps)
