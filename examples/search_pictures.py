"""Search a folder of pictures by words, and say which of a few names fits each.

Writes album/ and its vectors, album.safetensors.
"""

from pathlib import Path

import bridge

# A few pictures, drawn here so that the lines run; your own folder goes in their place.
Path("album").mkdir(exist_ok=True)
prompts = ["a big key", "two red apples", "a dog left of a cat", "three trees"]
for name, picture in zip("abcd", bridge.generate(prompts, seed=3, steps=12).images, strict=True):
    picture.save(f"album/{name}.png")

clip = bridge.CLIP("emoji-1")  # or "ViT-B-32/laion2b_s34b_b79k", a folder, a hub id
album = clip.embed_images(sorted(Path("album").glob("*.png")))  # read ahead, any number of them
album.save("album.safetensors")  # once; bridge.contrastive.Embeddings.load reads it again

for query in ["apples", "a cat and a dog", "a key"]:
    nearest = clip.similarity(album.vectors, clip.encode_text(query)).flatten()
    best = int(nearest.argmax())
    print(f"{query}: {Path(album.names[best]).name}, cosine {float(nearest[best]):.2f}")

classify = clip.classifier(["apple", "dog", "key", "tree"])
for file in album.names:
    label, share = classify(file)[0]
    print(f"{Path(file).name}: {label} ({share:.0%})")
