"""Two text towers, and what each makes of the same phrasings."""

import bridge

found = bridge.study(
    "a red cat and a blue dog",
    towers=["emoji-1", "emoji-2"],  # short names of `bridge towers`, folders, hub ids
    variants=["adjective-swap", "negation", "word-order"],
)
# How near each phrasing is to the prompt: 0 is the chance of unrelated texts, 1 the same state.
near = found.table.pivot_table("pooled_above_chance", "operation", "tower", sort=False)
print(near.round(2))
print(found.pairs[["kendall_tau", "cka"]].round(2))  # do both order the phrasings alike?
