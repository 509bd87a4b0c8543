"""Join an image tower to a language model, and train the projector between them: ten seconds.

Writes joined/, a model that bridge.load_vlm opens, with its loss curve in joined/loss.png.
"""

import torch

import bridge

# Pictures and captions; a folder, LLaVA's JSON, CSV, Parquet and shards are read as well.
things = ("cat", "dog", "key", "tree")
captions = [f"a {thing}" for thing in things]
pictures = bridge.generate(captions, seed=1, steps=8).images
rows = [{"image": image, "text": text} for image, text in zip(pictures, captions, strict=True)]

tower, processor = bridge.vlm.load_vision("emoji-clip")  # or openai/clip-vit-large-patch14
llm, tokenizer = bridge.vlm.load_llm("emoji-llava")  # or Qwen/Qwen3-0.6B
torch.manual_seed(0)  # a new projector starts from random weights
vlm = bridge.vlm.pair(tower, llm, tokenizer, projector="mlp2x_gelu", image_processor=processor)
done = bridge.train_vlm(vlm, rows, "joined", batch_size=4, steps=20)
print(f"loss {done.losses[0]:.2f} to {done.losses[-1]:.2f}")

joined = bridge.load_vlm("joined")
for picture, caption in zip(pictures, captions, strict=True):
    print(caption, "->", joined.answer(picture, "describe the picture."))
