"""Weights to and from the Hugging Face format of DeepSeek-V3 and V2: your model runs elsewhere, theirs runs here.

Format: config.json (`hf_config`) beside model.safetensors, or shards and model.safetensors.index.json, with the names
of the released weights (README_WEIGHTS.md of deepseek-ai/DeepSeek-V3). Reading and writing need no `transformers`.

    theirs                               ours
    model.embed_tokens, lm_head          embed, head
    input_layernorm                      attn_norm
    post_attention_layernorm             ffn_norm
    self_attn.kv_a_proj_with_mqa         attn.wkv_a            and so on: `RENAMES`
    mlp.gate_proj over mlp.up_proj       ffn.w13               one matrix, gate_proj's rows first
    mlp.experts.7.gate_proj, up_proj     ffn.experts.w13[7]    or stacked in the file: mlp.experts.gate_up_proj
    mlp.gate.e_score_correction_bias     ffn.gate.bias         fp32 whatever the rest is
    model.layers.{n_layers + k}          mtp.{k}               embed_tokens and shared_head.head there are mere copies

RoPE: the released weights hold a pair's two features side by side, as we do. With `rope_interleave: false` a file holds
all first features and then all second ones; those rows are put back (`interleaved`). The function is the same.

MTP: `transformers` knows MTP weights by the layer number 61 alone and would report those of any other depth as
unexpected. So `to_hf` writes them to mtp.safetensors, which `transformers` leaves alone and `from_hf` reads.

Differs from the paper: nothing; the paper has no file format.
Left out: FP8 files (dequantise first), pickled .bin files (they can run code), writing shards.
Notebook: 07_deepseek.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minids.config import Config
from minids.hf_config import config_from_hf, config_to_hf
from minids.model import Transformer
from minids.rope import precompute_freqs_cis
from minids.tokenizer import BOS, CHAT_TEMPLATE, END_THINK, EOS, PAD, SPECIAL, THINK, Tokenizer

# ours: theirs, by the part of the name; a name's pieces are looked up in this order
RENAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn.wq_a": "self_attn.q_a_proj", "attn.q_norm": "self_attn.q_a_layernorm", "attn.wq_b": "self_attn.q_b_proj",
    "attn.wq": "self_attn.q_proj", "attn.wkv_a": "self_attn.kv_a_proj_with_mqa",
    "attn.kv_norm": "self_attn.kv_a_layernorm", "attn.wkv_b": "self_attn.kv_b_proj", "attn.wo": "self_attn.o_proj",
    "ffn.gate.weight": "mlp.gate.weight", "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
}  # fmt: skip
TOP = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
ROPED = ("attn.wq.weight", "attn.wq_b.weight", "attn.wkv_a.weight")
MTP_FILE = "mtp.safetensors"
# what a file may hold besides the model: caches of old versions, and the copies beside an MTP module
IGNORED = re.compile(r"rotary_emb\.inv_freq$|layers\.\d+\.(embed_tokens|shared_head\.head)\.weight$")


def from_hf(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Transformer:
    """The model of a Hugging Face directory (model_type deepseek_v3 or deepseek_v2), in `dtype`, ready for inference.

    bf16 files are converted; float32 is the default because bf16 products are slow on most CPUs.
    Raises FileNotFoundError where config.json or the weights are missing, ValueError (the rule, the value, the remedy)
    for what is damaged or cannot be represented: other model types, biases, FP8, other RoPE scalings, missing or
    misshapen tensors.
    """
    directory = Path(directory)
    hf = _read_json(directory / "config.json", "a Hugging Face model directory holds config.json")
    with _Weights(directory) as weights:
        cfg = config_from_hf(hf, n_mtp_modules=_count_mtp(hf, weights))
        with torch.device("meta"):
            model = Transformer(cfg)
        wanted = model.state_dict()
        state, used = {}, set()
        for key, like in wanted.items():
            names = hf_names(key, cfg, weights)
            if key == "head.weight" and hf.get("tie_word_embeddings"):
                names = [TOP["embed.weight"]]
            as_is = torch.float32 if key.endswith("gate.bias") else dtype
            state[key] = weights.read(names, like.shape, as_is, device)
            used.update(names)
            if key.endswith(ROPED) and hf["model_type"] == "deepseek_v3" and not hf.get("rope_interleave", True):
                state[key] = interleaved(state[key], cfg, key)
        _tell_unused(set(weights) - used, cfg)
    model.load_state_dict(state, assign=True)
    model.freqs_cis = precompute_freqs_cis(cfg).to(device)
    return model.eval()


def to_hf(
    model: Transformer,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
    mtp: str = "apart",
) -> None:
    """Write `model` so that `transformers.AutoModelForCausalLM.from_pretrained(directory)` gives the same logits.

    `dtype` defaults to the weights' own. `tokenizer` (minids.tokenizer) adds its files and the chat template.
    `mtp`: "apart" (in mtp.safetensors, see above), "inside" (in model.safetensors, as DeepSeek releases them;
    `transformers` reports them as unexpected unless the model has 61 layers) or "drop".
    Each file is replaced whole or not at all; config.json comes last.
    Raises ValueError for a model that the format cannot hold (GQA attention; a softmax gate with normalised weights).
    """
    if mtp not in ("apart", "inside", "drop"):
        raise ValueError(f'mtp is "apart", "inside" or "drop"; got {mtp!r}. "apart" suits transformers.')
    cfg, directory = model.cfg, Path(directory)
    dtype = dtype or model.embed.weight.dtype
    hf = config_to_hf(cfg, dtype, n_mtp_modules=0 if mtp == "drop" else cfg.n_mtp_modules)
    main, extra = _to_theirs(model, dtype)
    if mtp == "inside":
        main |= extra | _copies_beside_mtp(cfg, main)
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    _replace(directory / "model.safetensors", lambda tmp: save_file(main, tmp, metadata))
    if extra and mtp == "apart":
        _replace(directory / MTP_FILE, lambda tmp: save_file(extra, tmp, metadata))
    else:
        (directory / MTP_FILE).unlink(missing_ok=True)
    if tokenizer is not None:
        hf |= write_tokenizer(tokenizer, directory, cfg)
    _write_json(directory / "config.json", hf)


def write_tokenizer(tokenizer: Tokenizer, directory: Path, cfg: Config) -> dict[str, int]:
    """tokenizer.json and its companions for `AutoTokenizer`; returns the ids that config.json names."""
    if tokenizer.vocab_size > cfg.vocab_size:
        raise ValueError(
            f"a tokenizer's ids must fit the model's vocabulary of {cfg.vocab_size}; got {tokenizer.vocab_size}. "
            "Export the model with the tokenizer that it was trained with."
        )
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": None,
        "additional_special_tokens": [t for t in SPECIAL if t not in (BOS, EOS, PAD, THINK, END_THINK)],
        "chat_template": CHAT_TEMPLATE, "model_max_length": cfg.max_seq_len, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    _write_json(directory / "tokenizer.json", _with_start_token(json.loads(tokenizer.to_str()), tokenizer.bos))
    _write_json(directory / "tokenizer_config.json", settings)
    _write_json(directory / "generation_config.json", ids | {"do_sample": True, "temperature": 0.7, "top_p": 0.95})
    return ids


def _with_start_token(backend: dict[str, Any], bos: int) -> dict[str, Any]:
    """As in DeepSeek's own tokenizer, plain text begins with the start token; a rendered chat brings its own."""
    start, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"]
    return backend | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text[0]],
            "pair": [start, text[0], start, text[1]],
            "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
        }
    }


def hf_names(key: str, cfg: Config, there: Iterable[str] = ()) -> list[str]:
    """Their names for our tensor `key`: more than one where ours is theirs stacked by rows, in that order.

    `there`: the names in the file, to tell stacked experts (one name) from single ones (2E or E names).
    """
    if key in TOP:
        return [TOP[key]]
    kind, number, rest = key.split(".", 2)  # layers.3.<rest> or mtp.0.<rest>
    prefix = f"model.layers.{int(number) + (cfg.n_layers if kind == 'mtp' else 0)}."
    if kind == "mtp":
        if not rest.startswith("block."):
            return [prefix + ("shared_head.norm.weight" if rest == "norm.weight" else rest)]
        rest = rest.removeprefix("block.")
    if rest.startswith("ffn.") and ".gate." not in rest:
        return _mlp_names(prefix, rest, cfg.n_routed_experts, there)
    stem = next(ours for ours in RENAMES if rest == ours or rest == ours + ".weight")
    return [prefix + rest.replace(stem, RENAMES[stem])]


def _mlp_names(prefix: str, rest: str, n_experts: int, there: Iterable[str]) -> list[str]:
    """`rest` is ffn.w13.weight, ffn.w2.weight, ffn.shared_experts.w13.weight, .., ffn.experts.w13 or ffn.experts.w2."""
    parts = ("gate_proj", "up_proj") if "w13" in rest else ("down_proj",)
    if rest.startswith("ffn.experts."):
        stacked = f"{prefix}mlp.experts.{'gate_up_proj' if 'w13' in rest else 'down_proj'}"
        if stacked in there:
            return [stacked]
        return [f"{prefix}mlp.experts.{e}.{part}.weight" for e in range(n_experts) for part in parts]
    shared = "shared_experts." if "shared_experts" in rest else ""
    return [f"{prefix}mlp.{shared}{part}.weight" for part in parts]


def interleaved(w: Float[Tensor, "O I"], cfg: Config, key: str) -> Float[Tensor, "O I"]:
    """A projection whose RoPE rows are (x0, x2, .., x1, x3, ..) with those rows back as (x0, x1, x2, ..).

    The RoPE rows are the last R of each head in wq_b and wq, and the last R of all in wkv_a.
    """
    R = cfg.qk_rope_head_dim
    heads = 1 if "wkv_a" in key else cfg.n_heads
    w = w.view(heads, -1, w.shape[-1]).clone()  # [H N+R I] or [1 C+R I]
    first, second = w[:, -R:].chunk(2, 1)
    w[:, -R:] = torch.stack([first, second], 2).flatten(1, 2)
    return w.flatten(0, 1)


def _to_theirs(model: Transformer, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the main model's tensors, the MTP modules') under their names, on the CPU, sharing no memory."""
    main, extra = {}, {}
    for key, w in model.state_dict().items():
        names = hf_names(key, model.cfg)
        w = w.detach().to("cpu", torch.float32 if key.endswith("gate.bias") else dtype)
        rows = w.reshape(-1, w.shape[-1]).chunk(len(names)) if w.dim() > 1 else [w]
        (extra if key.startswith("mtp.") else main).update(
            {n: r.clone(memory_format=torch.contiguous_format) for n, r in zip(names, rows, strict=True)}
        )
    if model.cfg.has_experts and not model.cfg.n_shared_experts:
        main |= _no_shared_experts(model.cfg, dtype)
    return main, extra


def _no_shared_experts(cfg: Config, dtype: torch.dtype) -> dict[str, Tensor]:
    """`transformers` builds the shared experts even at width 0 and wants their empty matrices."""
    shapes = {"gate_proj": (0, cfg.dim), "up_proj": (0, cfg.dim), "down_proj": (cfg.dim, 0)}
    return {
        f"model.layers.{i}.mlp.shared_experts.{part}.weight": torch.empty(shape, dtype=dtype)
        for i in range(cfg.n_dense_layers, cfg.n_layers) for part, shape in shapes.items()
    }  # fmt: skip


def _copies_beside_mtp(cfg: Config, main: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released files repeat embedding and head beside each MTP module."""
    layers = [f"model.layers.{cfg.n_layers + k}." for k in range(cfg.n_mtp_modules)]
    return {layer + "embed_tokens.weight": main[TOP["embed.weight"]].clone() for layer in layers} | {
        layer + "shared_head.head.weight": main[TOP["head.weight"]].clone() for layer in layers
    }


class _Weights:
    """The tensors of a directory by name, read one at a time: model.safetensors or its shards, and mtp.safetensors."""

    def __init__(self, directory: Path):
        self.file_of: dict[str, Any] = {}
        self.files = contextlib.ExitStack()
        try:
            for path in _weight_files(directory):
                file = self.files.enter_context(safe_open(path, framework="pt"))
                self.file_of.update(dict.fromkeys(file.keys(), file))
        except SafetensorError as e:
            self.files.close()
            raise ValueError(f"weights must be whole safetensors files; got {path.name}: {e}. Copy it again.") from e

    def __enter__(self) -> _Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def read(self, names: list[str], shape: torch.Size, dtype: torch.dtype, device: str | torch.device) -> Tensor:
        """Our tensor of `shape` from theirs, which hold equal shares of its rows."""
        out = torch.empty(shape, dtype=dtype, device=device)
        # a single file tensor has our own shape (a stack of experts has three axes), several have two
        parts = [out] if len(names) == 1 else out.view(-1, shape[-1]).chunk(len(names))
        for name, part in zip(names, parts, strict=True):
            part.copy_(self._checked(name, part.shape))
        return out

    def _checked(self, name: str, shape: torch.Size) -> Tensor:
        if name not in self.file_of:
            raise ValueError(f"the checkpoint must hold every tensor that config.json asks for; {name} is missing. "
                             "Check that config.json belongs to these files and that all shards are here.")  # fmt: skip
        there = self.file_of[name].get_slice(name)
        if list(there.get_shape()) != list(shape):
            raise ValueError(f"{name} must have the shape {list(shape)} that config.json asks for; "
                             f"got {there.get_shape()}. Check that config.json belongs to these files.")  # fmt: skip
        if there.get_dtype().startswith("F8"):
            raise ValueError(f"weights must be in bf16 or fp32; got {there.get_dtype()} in {name}. Dequantise first.")
        return self.file_of[name].get_tensor(name)


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = _read_json(index, "shards need their index")["weight_map"].values()
        # the name alone: an index may not point outside the directory
        files = [directory / Path(shard).name for shard in sorted(set(shards))]
    else:
        raise FileNotFoundError(
            f"a Hugging Face model directory holds model.safetensors or model.safetensors.index.json; {directory} has "
            "neither. Pickled .bin weights are not read: save the model again with safetensors."
        )
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"the index names {file.name}, and {directory} does not hold it. Copy the missing shard."
            )
    return files + [directory / MTP_FILE] * (directory / MTP_FILE).is_file()


def _count_mtp(hf: dict[str, Any], weights: _Weights) -> int:
    """How many MTP modules config.json announces and the files hold: many exports leave them out."""
    announced = hf.get("num_nextn_predict_layers") or hf.get("num_mtp_layers") or 0
    first = hf.get("num_hidden_layers") or 0
    held = [f"model.layers.{first + k}.eh_proj.weight" in weights for k in range(announced)]
    return announced if all(held) else held.index(False)


def _tell_unused(names: set[str], cfg: Config) -> None:
    """Warn of tensors that the model has no place for, as a wrong config.json would leave them."""
    left = sorted(n for n in names if not IGNORED.search(n) and not _of_no_layer(n, cfg))
    if left:
        warnings.warn(
            f"{len(left)} tensors of the checkpoint are not used, among them {', '.join(left[:3])}.", stacklevel=3
        )


def _of_no_layer(name: str, cfg: Config) -> bool:
    """Empty shared experts (width 0), and MTP modules that config.json does not announce."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    beyond = layer is not None and int(layer[1]) >= cfg.n_layers + cfg.n_mtp_modules
    return beyond or (not cfg.n_shared_experts and ".shared_experts." in name)


def _read_json(path: Path, rule: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{rule}; {path} does not exist. Give the directory that transformers' save_pretrained wrote."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path.name} must be JSON; got {e}. Copy the file again.") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} must hold a JSON object; got {type(found).__name__}. Copy the file again.")
    return found


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda tmp: tmp.write_text(text, encoding="utf-8", newline="\n"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside `path` and move into place, so that a crash leaves the old file or the new, never half of one."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        write(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
