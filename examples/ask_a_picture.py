"""A picture and questions: answers, the likeliest of several, a chat, and where a word came from.

Writes apples.png and where.png.
"""

import bridge

bridge.generate("two red apples left of a cat", seed=7, steps=12).images[0].save("apples.png")

print(bridge.describe("apples.png"))

vlm = bridge.load_vlm("emoji-llava")  # or a folder or hub id of LLaVA 1.5, 1.6, BLIP-2
print(vlm.answer("apples.png", "what is on the left?"))

choice = vlm.choose("apples.png", "is there a cat?", ["yes", "no"])
print(choice.answer, [round(each, 3) for each in choice.probabilities])

messages = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many apples?"}]}
]
print(vlm.chat(messages, images=["apples.png"]))

# Parts of the picture are blanked one after another: which cost the answer's last word the most?
seen = bridge.vlm.occlusion(vlm, "apples.png", "what is on the right?")
cells = seen.cells(len(seen.words) - 1)  # of its last word, in log-probability
bridge.vlm.heat_overlay(seen.picture, cells).save("where.png")
print(f"{seen.answer}: without some part its last word loses {cells.max():.1f}")
