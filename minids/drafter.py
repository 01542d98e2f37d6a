"""A cheap drafter for several tokens: V3's MTP module, made dense and trained on its own output.

Source: speculative decoding needs a drafter that is cheap and whose q is close to the main model's p (arXiv 2211.17192,
section 3.3); feeding a drafter its own states while it is trained is arXiv 2503.01840 (EAGLE-3).

V3 trains the module for one token ahead. Decoding may repeat it for more (`speculate`), and then it reads its own state
h^k where it has always read the main model's h: the second draft is kept much less often than the first. And its routed
experts are what a draft spends most of its time on. So (`dense`) put one FFN in their place, and (`tune`) train the
module as it is used, on texts half of which (`written`) the main model wrote itself, K times in a row:

    h^k_i = module(h^(k-1)_i, t_(i+k)),  k = 1 .. K           the same module each time
    q^k_i = softmax(head(h^k_i))                              what it says of t_(i+k+1)
    loss  = 1/K sum_k mean_i -sum_w p_(i+k)[w] log q^k_i[w]   p: what the main model says there

Only the module's weights move. The main model is what it was, and so is every text that it writes.

Differs from the paper: V3's module keeps its experts, and V3 drafts one token. EAGLE-3 reads states of several layers;
we read the last one, as V3's module does. In training the attention reads states of one k alone; at decoding those of
k = 1, and its own last ones.
Left out: a tree of drafts.
Notebook: 16_decode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm, trange

from minids import checkpoint
from minids.corpus import Packed
from minids.generate import generate
from minids.model import Block, Transformer
from minids.mtp import MTP, module_of
from minids.needle import training

ASSET = Path(__file__).resolve().parent.parent / "assets" / "drafter.safetensors"


def dense(model: Transformer) -> MTP:
    """`model.mtp[0]` with a new FFN of width 2 inter_dim in place of its experts; all other weights are copied."""
    cfg, old = model.cfg, module_of(model).state_dict()
    module = MTP(cfg, Block(replace(cfg, inter_dim=2 * cfg.inter_dim), moe=False))
    for name, p in module.named_parameters():
        if ".ffn." in name:
            torch.nn.init.normal_(p, std=cfg.init_std)
    module.load_state_dict({name: t for name, t in old.items() if ".ffn." not in name}, strict=False)
    return module


def written(model: Transformer, starts: Int[Tensor, "B P"], length: int, temperature: float) -> Int[Tensor, "B L"]:
    """Rows of `length` tokens as the drafter will meet them: `starts`, and what the main model makes of them."""
    new = torch.tensor(generate(model, starts, length - starts.shape[1], temperature), device=starts.device)
    return torch.cat([starts, new], 1)


def drafter_loss(model: Transformer, tokens: Int[Tensor, "B S"], depth: int = 3) -> Float[Tensor, ""]:
    """Cross-entropy in nats between the main model's distributions and those of `depth` drafts in a row."""
    module, S = module_of(model), tokens.shape[1]
    with torch.no_grad():
        h, _ = model.hidden(tokens)
        p = model.head(h).softmax(-1)
    total = h.new_zeros(())
    for k in range(1, depth + 1):
        h, _ = module(h[:, :-1], model.embed(tokens[:, k:]), model.freqs_cis[: S - k])
        # position i has read t_(i+k) and speaks of the next token, as the main model does at i + k
        total = total + F.cross_entropy(model.head(h).flatten(0, 1), p[:, k:].flatten(0, 1))
    return total / depth


def tune(
    model: Transformer, batch: Callable[[], Int[Tensor, "B S"]], steps: int, depth: int = 3, rate: float = 1e-3
) -> Iterator[float]:
    """Train `model.mtp[0]`, and nothing else, on `depth` drafts in a row; the loss after each step.

    ValueError for a model without a module, or a `depth` below 1.
    """
    if depth < 1:
        raise ValueError(f"a drafter is trained for 1 or more drafts in a row; got depth={depth}. 3 is a usual choice.")
    losses: list[float] = []

    def objective() -> Tensor:
        loss = drafter_loss(model, batch(), depth)
        losses.append(loss.item())
        return loss

    for _ in training(list(module_of(model).parameters()), objective, steps, rate, cool=True):
        yield losses[-1]


def shipped() -> Transformer:
    """The shipped tiny model, with the drafter that `python -m minids.drafter` made for it in place of its module."""
    model, _ = checkpoint.load_model(checkpoint.shipped())
    model.mtp[0] = dense(model)
    model.mtp[0].load_state_dict(checkpoint.read_tensors(ASSET))
    return model.eval()


def main() -> None:
    """Make a drafter for the shipped model and write assets/drafter.safetensors, in BF16."""
    parser = argparse.ArgumentParser(description="Make assets/drafter.safetensors, for the shipped model.")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=16, help="rows of 128 tokens a step, half of them self-written")
    parser.add_argument("--pool", type=int, default=6144, help="self-written rows")
    parser.add_argument("--device", default="cpu", help="cpu: half an hour on one core; or cuda")
    parser.add_argument("--out", type=Path, default=ASSET)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = checkpoint.load_model(checkpoint.shipped(), device=args.device)
    assert tokenizer is not None
    data = Packed(tokenizer, 128, fim_rate=0.0)
    # greedily and at temperature 1, in turns
    pool = torch.cat([written(model, data.batch(256)[:, :24].to(args.device), 128, i % 2)
                      for i in trange(-(-args.pool // 256), desc="the main model writes")])  # fmt: skip
    model.mtp[0] = dense(model).to(args.device)

    def batch() -> Int[Tensor, "B S"]:
        mine = pool[torch.randint(len(pool), (args.rows // 2,), device=pool.device)]
        return torch.cat([data.batch(args.rows - args.rows // 2)[:, :-1].to(args.device), mine])

    bar = tqdm(tune(model, batch, args.steps, rate=2e-3), total=args.steps, desc="the drafter learns")
    for step, loss in enumerate(bar):
        if step % 50 == 0:
            bar.set_postfix(nats=f"{loss:.3f}")
    checkpoint.write(args.out, save({name: t.bfloat16().cpu() for name, t in model.mtp[0].state_dict().items()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
