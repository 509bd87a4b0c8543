"""Does it matter how it is said? Phrasings read and drawn. Writes study.html and study.csv."""

import bridge

found = bridge.study(
    "two red apples left of a cat",
    variants=["article", "number"],
    model="emoji-xl",
    seeds=[0],
    steps=4,
    on_progress=print,
)
print(found.summary())
found.save("study.html")  # one page: tables, pictures, where each word was looked at
found.save("study.csv")
