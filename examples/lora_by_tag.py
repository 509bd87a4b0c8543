"""A LoRA by its tag, at a strength for each prompt of a batch. Writes loras/ and lora.png."""

from pathlib import Path

import torch
from safetensors.torch import save_file

import bridge

pipe = bridge.load_pipeline("emoji-xl")

# A small LoRA of the first text tower, made here so that the lines run; yours lies in loras/.
config, layer = pipe.text_encoder.config, "lora_te1_text_model_encoder_layers_0_mlp_fc1"
noise = torch.Generator().manual_seed(0)
down = torch.randn(4, config.hidden_size, generator=noise, dtype=torch.float32) / 8
up = torch.randn(config.intermediate_size, 4, generator=noise, dtype=torch.float32) / 8
Path("loras").mkdir(exist_ok=True)
save_file(
    {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, "loras/inked.safetensors"
)

# Of a folder only those act that a prompt names; prompts of other strengths share the passes.
prompts = ["a cat", "a cat <lora:inked:0.5>", "a cat <lora:inked:1>"]
cond = bridge.condition(prompts, model=pipe, loras="loras/")
moved = (cond.prompt_embeds - cond.prompt_embeds[:1]).norm(dim=-1).mean(1)
print("moved by", [round(float(each), 3) for each in moved])

drawn = bridge.generate("a cat <lora:inked:1>", model=pipe, loras="loras/", seed=1, steps=8)
drawn.images[0].save("lora.png")
