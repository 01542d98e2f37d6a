"""Does a model copy? What it gives to the names of a held-out story, and to random tokens that come a second time.

    python tests/benchmarks/copying.py                      the shipped model beside an untrained one, 15 seconds
    python tests/benchmarks/copying.py --model runs/mine    a model of yours, or a run that still goes on

Wherever a story names somebody whom it has named before, one number: of the probability that falls on any of the 36
names, the part on names that this story has had. A model that does not look back gives each name its equal part
(`blind`); one that knows who is there, and not which of them comes, gives 1. The last columns are losses, in nats, of
64 random tokens and of the same 64 again: a model that can repeat (an induction head) has a far lower one the second
time. The weights of `kv_norm` show how loud each layer's attention is: they scale its values, and the part of its keys
that has no position, from 1 at the start.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from minids import checkpoint
from minids.config import tiny
from minids.corpus import documents
from minids.lexicon import WORDS
from minids.model import Transformer
from minids.tokenizer import Tokenizer


@dataclass
class Names:
    """The tokens that are whole names: `person[i]` is the number of the one whom `tokens[i]` names."""

    tokens: Tensor
    person: Tensor

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Names:
        found = {}
        for number, forms in enumerate(WORDS["person"].values()):
            for text in (forms[0], " " + forms[0], forms[1]):
                ids = tokenizer.encode(text)
                if len(ids) == 1:
                    found[ids[0]] = number
        return cls(torch.tensor(list(found)), torch.tensor(list(found.values())))


@torch.no_grad()
def known_share(model: Transformer, tokenizer: Tokenizer, lang: str, n: int) -> tuple[float, float, int]:
    """(mean share on names met before, the same for equal parts, how many places) in `n` held-out stories."""
    names = Names.of(tokenizer)
    who = dict(zip(names.tokens.tolist(), names.person.tolist(), strict=True))
    shares, blind = [], []
    for text in documents(lang, "val", n):
        ids = [tokenizer.bos, *tokenizer.encode(text)]
        p, met = model(torch.tensor([ids[:-1]]))[0].softmax(-1)[:, names.tokens], set()
        for place, token in enumerate(ids):
            person = who.get(token)
            if person in met:
                known = torch.isin(names.person, torch.tensor(sorted(met)))
                shares.append((p[place - 1, known].sum() / p[place - 1].sum()).item())
                blind.append(len(met) / len(WORDS["person"]))
            if person is not None:
                met.add(person)
    return sum(shares) / len(shares), sum(blind) / len(blind), len(shares)


@torch.no_grad()
def repeated(model: Transformer, n: int = 64, batch: int = 8) -> tuple[float, float]:
    """Loss of random tokens and of the same ones again, the first eight of each left out."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(model.cfg.vocab_size // 8, model.cfg.vocab_size, (batch, n), generator=g).repeat(1, 2)
    loss = -model(rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
    return loss[:, 8 : n - 1].mean().item(), loss[:, n + 7 :].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a run or a model; the shipped one by default")
    parser.add_argument("--stories", type=int, default=16, help="held-out stories in each language")
    args = parser.parse_args()
    model, tokenizer = checkpoint.load_model(args.model or checkpoint.shipped())
    if tokenizer is None:
        raise ValueError(f"stories need a tokenizer; {args.model} has none. Give the directory of a run on text.")
    untrained = Transformer(tiny(), torch.Generator().manual_seed(0))
    print("| model | en, names met before | zh | blind en / zh | places | random tokens | again | kv_norm by layer |")
    print("|---|---|---|---|---|---|---|---|")
    for label, net in (("untrained", untrained), (args.model or "shipped", model.float())):
        (en, en0, n), (zh, zh0, m) = (known_share(net.eval(), tokenizer, lang, args.stories) for lang in ("en", "zh"))
        first, again = repeated(net)
        norms = [block.attn.kv_norm.weight.mean().item() for block in net.layers if hasattr(block.attn, "kv_norm")]  # type: ignore[union-attr,operator]
        print(f"| {label} | {en:.1%} | {zh:.1%} | {en0:.1%} / {zh0:.1%} | {n} + {m} | {first:.2f} | {again:.2f} | "
              f"{' '.join(f'{w:.2f}' for w in norms)} |")  # fmt: skip


if __name__ == "__main__":
    main()
