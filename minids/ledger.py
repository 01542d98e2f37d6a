"""What the papers claim beside what the course computed: rows that a chapter fills and `notebooks/README.md` collects.

    claims = Ledger("03_mla")
    claims.exact("cache per token (KB)", "2505.09343 table 1", "70.272", kv_bytes_per_token(v3()) / 1000)
    claims.note("stronger than MHA", "2405.04434 table 9", "yes", "needs a trained pair", "not checked")
    claims                                     # the last line of the cell: shown as a table

A row says one of four things: `exact` (arithmetic; the number must round to the published one, or the row is refused),
`in kind` (the same effect at tiny scale), `not seen` (looked for at this scale, not found), `not checked` (out of reach here).

Not in the paper: this is the course's own bookkeeping.
Notebook: all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
        self.rows.append((claim, source, published, f"{here:,.{max(digits, 2)}f}" if digits else f"{here:,.0f}", "exact"))

    def note(self, claim: str, source: str, published: str, here: str, verdict: str) -> None:
        """A claim that is more than arithmetic, with what was seen in words. ValueError for an unknown verdict."""
        if verdict not in VERDICTS[1:]:
            raise ValueError(f"a noted claim is one of {', '.join(VERDICTS[1:])}; got {verdict!r}. Arithmetic goes to exact().")
        self.rows.append((claim, source, published, here, verdict))

    def __str__(self) -> str:
        head = ("claim", "source", "published", "here", "verdict")
        lines = [head, ("---",) * 5, *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return str(self)
