"""What the papers claim beside what the course computed: rows that a chapter fills and `notebooks/README.md` collects.

    claims = Ledger("03_mla")
    claims.exact("cache per token (KB)", "2505.09343 table 1", "70.272", kv_bytes_per_token(v3()) / 1000)
    claims.note("stronger than MHA", "2405.04434 table 9", "yes", "needs a trained pair", "not checked")
    claims                                     # the last line of the cell: shown as a table

A row says one of four things: `exact` (arithmetic; the number must round to the published one, or the row is refused),
`in kind` (the same effect at tiny scale), `not seen` (looked for, not found here), `not checked` (out of reach).

`python -m minids.ledger` gathers the tables of all notebooks, as their cells showed them, into notebooks/README.md.

Not in the paper: this is the course's own bookkeeping.
Notebook: all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEAD = ("claim", "source", "published", "here", "verdict")
BEGIN, END = "<!-- ledger: made by `python -m minids.ledger` -->", "<!-- end of ledger -->"
VERDICTS = ("exact", "in kind", "not seen", "not checked")


@dataclass
class Ledger:
    """The claims of one chapter. As the last line of a cell it shows itself as a table."""

    chapter: str
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def exact(self, claim: str, source: str, published: str, here: float) -> None:
        """A claim that arithmetic reproduces. `published` is the number as printed: "70.272", "2.25", "671,026".

        Raises: ValueError when `here` does not round to the published digits.
        """
        plain = published.replace(",", "")
        digits = len(plain.partition(".")[2])
        if f"{here:.{digits}f}" != plain:
            raise ValueError(
                f"an exact claim must round to the published number; {claim}: {here} is not {published}. "
                "Mend the computation, or note() what differs."
            )
        self.rows.append(
            (claim, source, published, f"{here:,.{max(digits, 2)}f}" if digits else f"{here:,.0f}", "exact")
        )

    def note(self, claim: str, source: str, published: str, here: str, verdict: str) -> None:
        """A claim that is more than arithmetic, with what was seen in words. ValueError for an unknown verdict."""
        if verdict not in VERDICTS[1:]:
            raise ValueError(
                f"a noted claim is one of {', '.join(VERDICTS[1:])}; got {verdict!r}. Arithmetic goes to exact()."
            )
        self.rows.append((claim, source, published, here, verdict))

    def __str__(self) -> str:
        lines = [HEAD, ("---",) * 5, *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return str(self)


def collect(folder: Path) -> str:
    """One table from the ledgers that the notebooks in `folder` show, in the order of the chapters."""
    lines = [("chapter", *HEAD), ("---",) * 6]
    for path in sorted(folder.glob("*.ipynb")):
        lines += [(f"[{path.stem}]({path.name})", *row) for row in _rows(path)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of every ledger that a cell of the notebook showed."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            if text.startswith(f"| {' | '.join(HEAD)} |"):
                yield from ([part.strip() for part in line.strip(" |").split(" | ")] for line in text.splitlines()[2:])


def refresh(readme: Path) -> str:
    """The text of `readme` with the ledger between its two marks made anew from the notebooks beside it."""
    text = readme.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{collect(readme.parent)}\n{END}{after}"


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "notebooks" / "README.md"
    target.write_text(refresh(target), encoding="utf-8")
