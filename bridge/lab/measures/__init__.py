"""What is measured of a tower's states: pure functions, one measure a file."""

from bridge.lab.measures.agreement import kendall_tau, linear_cka
from bridge.lab.measures.anisotropy import UNRELATED, mean_cosine
from bridge.lab.measures.drift import above_chance, cosine, cosines, matched, token_cosine
from bridge.lab.measures.effective_rank import effective_rank
from bridge.lab.measures.intervals import mean_interval
from bridge.lab.measures.leave_one_out import effects, texts_without
from bridge.lab.measures.shares import word_shares
from bridge.lab.measures.splitting import content, pieces_per_word, tokens_of_words
from bridge.towers import rollout

__all__ = [
    "UNRELATED",
    "above_chance",
    "content",
    "cosine",
    "cosines",
    "effective_rank",
    "effects",
    "kendall_tau",
    "linear_cka",
    "matched",
    "mean_cosine",
    "mean_interval",
    "pieces_per_word",
    "rollout",
    "texts_without",
    "token_cosine",
    "tokens_of_words",
    "word_shares",
]
