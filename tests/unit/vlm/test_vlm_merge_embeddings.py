"""Splicing as a property: every soft token lands where its picture stands, on either padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import OptionError, PromptError
from bridge.vlm.merge_embeddings import expand_placeholder, merge_embeddings, pad_rows

IMAGE, PAD, WIDTH = 9, 0, 3

# A row is words (1 to 8) and pictures, each with its number of soft tokens.
ROW = st.lists(
    st.one_of(st.integers(1, 8), st.tuples(st.just(IMAGE), st.integers(0, 4))),
    min_size=1,
    max_size=8,
)


@given(rows=st.lists(ROW, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
@settings(max_examples=80, deadline=None)
def test_words_and_soft_tokens_in_order(rows: list[list[Any]], side: Any) -> None:
    embed = torch.nn.Embedding(IMAGE, WIDTH)  # the image token lies past the table
    soft: list[torch.Tensor] = []
    ids, wanted = [], []
    for row in rows:
        counts, parts = [], []
        for item in row:
            if isinstance(item, tuple):
                soft.append(torch.randn(item[1], WIDTH))
                counts.append(item[1])
                parts.append(soft[-1])
            else:
                parts.append(embed.weight[item][None])
        plain = [item[0] if isinstance(item, tuple) else item for item in row]
        ids.append(expand_placeholder(plain, IMAGE, counts))
        wanted.append(torch.cat(parts))
    if not any(ids):
        return  # nothing but pictures without a token
    out = merge_embeddings(embed, *pad_rows(ids, PAD, side), IMAGE, soft)
    longest = max(map(len, ids))
    for index, want in enumerate(wanted):
        place = slice(longest - len(want), longest) if side == "left" else slice(0, len(want))
        assert torch.equal(out.inputs_embeds[index, place], want)
        assert int(out.attention_mask[index].sum()) == len(want)
        assert int(out.attention_mask[index, place].sum()) == len(want)
        assert out.position_ids[index, place].tolist() == list(range(len(want)))


def test_counts_that_differ_are_both_said() -> None:
    with pytest.raises(PromptError, match="2 image marks, but 1 pictures"):
        expand_placeholder([1, IMAGE, IMAGE], IMAGE, [3])
    ids, mask = pad_rows([[IMAGE] * 5, [1]], PAD)
    with pytest.raises(
        PromptError, match=r"5 image positions, but 2 .* of 2, 1 .* make 3.*tower X"
    ):
        soft = [torch.ones(2, 2), torch.ones(1, 2)]
        merge_embeddings(torch.nn.Embedding(9, 2), ids, mask, IMAGE, soft, "tower X")
    side: Any = "top"
    with pytest.raises(OptionError, match="'left' or 'right'"):
        pad_rows([[1]], PAD, side)
