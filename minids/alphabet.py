"""A vocabulary of a few dozen symbols, for policies so small that reinforcement learning takes minutes.

Not in the paper: DeepSeek-R1 has V3's 128K tokens, whose embedding a model of 0.3 M parameters could not afford.

    "<think>6+8=14</think><answer>14</answer>"  <->  one id a symbol: <think> 6 + 8 = 1 4 </think> <answer> 1 4 ...

The tags and the number words of two languages are one symbol each; everything else is a character. Text holds no
spaces. `encode_prompts` pads on the LEFT: the last column of every row is then the last token of its prompt, and all
rows go on from the same place.

Differs from the paper: the symbols.
Left out: unknown characters; a text that holds one is refused.
Notebook: 13_sft, 14_grpo, 15_r1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

PAD, EOS = "<pad>", "<eos>"
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "plus", "carry")
CHINESE = ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九", "加", "进")
WORDS = ("sort", "reverse", "en", "zh")
SYMBOLS = (PAD, EOS, THINK, END_THINK, ANSWER, END_ANSWER, *"0123456789+-*/()=;:,?x%", *WORDS, *ENGLISH, *CHINESE)


class Alphabet:
    """Symbols by id. The first two are padding and the end of a text."""

    def __init__(self, symbols: Sequence[str] = SYMBOLS):
        self.symbols = tuple(symbols)
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.pad, self.eos = self.ids[PAD], self.ids[EOS]
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first)) + "|(.)", re.DOTALL)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. ValueError names the first character that is no symbol."""
        found = []
        for match in self._split.finditer(text):
            if match[1]:
                raise ValueError(
                    f"a text is made of the alphabet's symbols; {match[1]!r} at {match.start()} of {text[:60]!r} is "
                    f"none. The symbols are {' '.join(self.symbols)}."
                )
            found.append(self.ids[match[0]])
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first <eos>; padding is left out."""
        found = []
        for i in ids:
            if i == self.eos:
                break
            if i != self.pad:
                found.append(self.symbols[i])
        return "".join(found)

    def encode_prompts(self, prompts: Sequence[str], width: int = 0) -> Int[Tensor, "B S"]:
        """The prompts as rows of one length, padded on the left; `width` 0 takes the longest."""
        rows = [self.encode(p) for p in prompts]
        width = width or max(map(len, rows))
        too_long = next((p for p, row in zip(prompts, rows, strict=True) if len(row) > width), None)
        if too_long is not None:
            raise ValueError(f"a prompt has at most {width} symbols; got {too_long!r}. Give a larger width.")
        return torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])
