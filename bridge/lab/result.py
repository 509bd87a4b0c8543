"""The result of a study: tidy tables, pictures, and the ways to keep them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.checks import keywords
from bridge.errors import OptionError
from bridge.files import write_whole

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

    from bridge.lab.variant_pictures import VariantPicture

TABLES = ("table", "words", "sets", "towers", "pairs", "pictures", "verdicts")

ENDINGS = (".html", ".csv", ".json")
"""What ``save`` writes."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MEANS = ("pieces_per_word", "pooled_cosine", "pooled_above_chance", "pooled_centred",
         "token_cosine", "token_centred")  # fmt: skip
"""The columns of ``table`` that ``summary`` has the means of."""


@keywords
@dataclass(frozen=True, eq=False)
class Study:
    """What a study found. Tables are tidy: a row per observation, a column per variable.

    Attributes:
        table: a row for each variant in each tower: prompt, operation, detail, text, dialect,
            tower, tokens, cut (tokens that did not fit), pieces_per_word, and how near it is to the
            prompt: pooled_cosine, pooled_above_chance (0 for unrelated texts, 1 for equal ones),
            pooled_centred, token_cosine and token_centred (of the tokens that both have). The
            prompt itself is the operation "original".
        words: a row for each word in each tower: its pieces, leave_one_out (1 - cosine when it is
            gone), leave_one_out_centred, rollout_share of the pooled state.
        sets: the effective_rank of each prompt's variants, of all and by operation, in each tower.
        towers: a row per tower; chance is the mean cosine of unrelated texts. With a model also
            swap, component and reason.
        pairs: a row for two towers and a prompt: kendall_tau and cka.
        pictures: a row per picture, in the order of ``drawn``: choice, seed, pixel_distance,
            tower_distance, and the judge's figures as judge_NAME.
        verdicts: the judge's figures by operation and choice, with 95 % intervals.
        drawn: the pictures, with heat maps by word.
        settings: what made it, as plain values.
    """

    table: DataFrame
    words: DataFrame
    sets: DataFrame
    towers: DataFrame
    pairs: DataFrame
    pictures: DataFrame
    verdicts: DataFrame
    drawn: tuple[VariantPicture, ...]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return (
            f"Study({len(self.table)} readings by {len(self.towers)} towers, "
            f"{len(self.drawn)} pictures)"
        )

    @property
    def images(self) -> list[Image]:
        """The pictures alone, in the order of ``pictures``."""
        return [each.image for each in self.drawn]

    def summary(self) -> str:
        """The means of each operation in each tower, as plain text."""
        if self.table.empty:
            return "nothing was read"
        figures = [name for name in MEANS if name in self.table]
        means = self.table.groupby(["tower", "operation"], sort=False)[figures].mean()
        return means.round(3).to_string(na_rep="-")

    def to_dict(self) -> dict[str, Any]:
        """All tables as lists of rows, ready for JSON; what is not known is None."""
        tables = {
            name: json.loads(getattr(self, name).to_json(orient="records")) for name in TABLES
        }
        return {"settings": dict(self.settings), **tables}

    def html(self) -> str:
        """One page with all of it: no network, light and dark, for phones too."""
        from bridge.lab.report import page

        return page(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, max_rows=40)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file by its ending: ``.html`` (the report), ``.csv`` (``table``) or ``.json``
        (all tables).

        In a ``.csv``, text that a spreadsheet would compute has an apostrophe before it.

        Raises:
            OptionError: another ending.
        """
        target = Path(path)
        ending = target.suffix.lower()
        if ending == ".html":
            text = self.html()
        elif ending == ".csv":
            text = _inert(self.table).to_csv(index=False)
        elif ending == ".json":
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"
        else:
            raise OptionError(f"{str(target)!r} must end in one of {', '.join(ENDINGS)}.")
        write_whole(target, text.encode("utf-8"))
        return target


def _inert(table: DataFrame) -> DataFrame:
    """The table with an apostrophe before each text that is a formula to a spreadsheet, as OWASP
    has it ("CSV Injection"); numbers are as they were."""

    def quoted(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    return table.rename(columns=quoted).map(quoted)
