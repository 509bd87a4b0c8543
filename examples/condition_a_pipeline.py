"""Weighted prompts into a stock diffusers pipeline. Writes pipeline.png."""

import bridge

# Any pipeline of SD 1, 2, XL, SD 3, FLUX.1 ... that diffusers loads goes in its place.
pipe = bridge.load_pipeline("emoji-xl")

cond = bridge.condition("a (red:1.3) apple left of a cat", "blurry", model=pipe)
print(cond.report())  # which tokens, of which weight, and what was cut off

image = pipe(**cond.kwargs(), num_inference_steps=12, guidance_scale=3.0).images[0]
image.save("pipeline.png")
