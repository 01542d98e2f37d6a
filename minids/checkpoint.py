"""What training leaves on disk, written so that a crash at any moment loses nothing: runs, checkpoints, models.

Paper: not described; DeepSeek-V3 (section 1) only tells that its training never had to be rolled back.

    runs/a/config.json            the model's sizes           a model directory holds these three files
    runs/a/tokenizer.json         the tokenizer
    runs/a/model.safetensors      the weights, when training has ended
    runs/a/train.json             how it is trained
    runs/a/step-00000120/         a checkpoint: tensors.safetensors (weights, average, moments, random state)
                                  and state.json (step, plan, data position, history); the last few are kept

Atomic: a checkpoint is written beside its place under a name that ends in `.tmp`, flushed to the disk, then renamed.
A rename happens wholly or not at all, so a directory named step-... is complete; what ends in `.tmp` was never finished
and is swept away. Nothing is pickled: a file of weights cannot run code.

Differs from the paper: nothing to differ from.
Left out: sharded and asynchronous saving (torch.distributed.checkpoint does both).
Notebook: 08_pretrain.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from minids.config import Config
from minids.model import Transformer
from minids.tokenizer import Tokenizer

CONFIG, TOKENIZER, MODEL, TRAIN = "config.json", "tokenizer.json", "model.safetensors", "train.json"
TENSORS, STATE, TMP = "tensors.safetensors", "state.json", ".tmp"
FORMAT = "minids"
NAME = re.compile(r"step-\d{8,}")


def save(run: str | Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint `run/step-...` and delete all but the last `keep`. Returns its path.

    OSError, with what to do, where the disk is full; the checkpoints that were there stay whole.
    """
    run = Path(run)
    path = run / f"step-{step:08d}"
    tmp = path.with_name(path.name + TMP)
    try:
        _write_checkpoint(tmp, tensors, state)
        if path.exists():  # the same step, saved again: the old one goes only when the new one is whole
            os.replace(path, _fresh(path.with_name(path.name + ".old" + TMP)))
        os.replace(tmp, path)
        _flush_directory(run)
    except OSError as error:
        raise _cannot_save(error, path) from error
    finally:
        sweep(run)
    for old in checkpoints(run)[: -max(keep, 1)]:
        # first out of sight, then away: a half deleted directory must not look like a checkpoint
        os.replace(old, gone := _fresh(old.with_name(old.name + TMP)))
        shutil.rmtree(gone)
    return path


def _write_checkpoint(tmp: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    _fresh(tmp).mkdir(parents=True)
    write(tmp / TENSORS, pack(tensors))
    write(tmp / STATE, to_json(state))
    _flush_directory(tmp)


def _cannot_save(error: OSError, path: Path) -> OSError:
    good = latest(path.parent) if path.parent.is_dir() else None
    kept = f"the last good checkpoint, {good}, is whole" if good else "nothing had been saved before"
    return OSError(
        error.errno,
        f"could not save {path} ({error.strerror or error}); {kept}. "
        "Free some space, or lower `keep`, and start the same command again: it goes on from there.",
    )


def load(path: str | Path, expect: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of the checkpoint directory `path`.

    `expect` holds parts of the state that must be the same, for instance {"model": the sizes}; ValueError names the
    first field that differs. FileNotFoundError for a missing file, ValueError for a damaged one.
    """
    path = Path(path)
    state = read_json(path / STATE, "a checkpoint")
    for part, given in (expect or {}).items():
        check_same(state.get(part, {}), given, f"{path} comes from another {part} configuration")
    return read_tensors(path / TENSORS), state


def checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [p for p in Path(run).glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def latest(run: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def sweep(run: str | Path) -> list[Path]:
    """Delete what a killed process left unfinished in a run directory. Returns what went."""
    left = [p for p in Path(run).glob("*" + TMP) if p.name.startswith(("step-", CONFIG, TOKENIZER, MODEL, TRAIN))]
    for p in left:
        _fresh(p)
    return left


def save_model(
    directory: str | Path, model: Transformer, tokenizer: Tokenizer | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a model directory: config.json, tokenizer.json, model.safetensors in `dtype` (BF16 halves the file).

    The gates' biases stay in fp32: their steps are finer than BF16 resolves.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: t.to(torch.float32 if name.endswith("gate.bias") else dtype) for name, t in model.state_dict().items()
    }
    try:
        write_config(directory, model.cfg)
        if tokenizer is not None:
            write(directory / TOKENIZER, tokenizer.to_str().encode("utf-8"))
        write(directory / MODEL, pack(weights))  # last: a directory with weights is a whole one
    except OSError as error:
        raise _cannot_save(error, directory / MODEL) from error
    finally:
        sweep(directory)
    return directory


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[Transformer, Tokenizer | None]:
    """(model ready for inference, tokenizer) of a model directory, a run, or one checkpoint of a run.

    A run that has not ended gives the weights of its last checkpoint. Without a tokenizer.json the tokenizer is None.
    FileNotFoundError or ValueError say what is missing or wrong, and what to do.
    """
    path = Path(path)
    home = path.parent if NAME.fullmatch(path.name) else path
    cfg = read_config(home)
    model = Transformer(cfg)
    _fill(model, _find_weights(path), path)
    tokenizer = home / TOKENIZER
    for p in model.parameters():  # not `model.to(dtype)`: angles are complex, and biases stay in fp32
        p.data = p.data.to(dtype)
    return model.to(device).eval(), Tokenizer.load(tokenizer) if tokenizer.is_file() else None


def _find_weights(path: Path) -> dict[str, Tensor]:
    if (path / MODEL).is_file():
        return read_tensors(path / MODEL)
    checkpoint = path if NAME.fullmatch(path.name) else latest(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} holds no weights: neither {MODEL} nor a checkpoint step-... . "
            "Train it first, or choose another directory."
        )
    tensors, state = load(checkpoint)
    which = state.get("export", "model")
    return {name[len(which) + 1 :]: t for name, t in tensors.items() if name.startswith(which + ".")}


def _fill(model: Transformer, weights: dict[str, Tensor], path: Path) -> None:
    """Load all weights, or say which one does not fit the config."""
    want = model.state_dict()
    for name in sorted(want.keys() | weights.keys()):
        here, there = (list(d[name].shape) if name in d else "nothing" for d in (want, weights))
        if here != there:
            raise ValueError(
                f"the weights of {path} do not fit its {CONFIG}: {name} is {there} in the file and {here} by the "
                "config. They come from different models; put back the config.json that was saved with these weights."
            )
    model.load_state_dict(weights)


def shipped() -> Path:
    """The trained tiny model that comes with the course, assets/tiny of a source checkout."""
    path = Path(__file__).resolve().parent.parent / "assets" / "tiny"
    if not (path / MODEL).is_file():
        raise FileNotFoundError(
            f"there is no model in {path}: the package does not run from a checkout of the course. "
            "Clone the repository and install it with `pip install -e .`, or train a model with `minids train`."
        )
    return path


def write_config(directory: str | Path, cfg: Config) -> None:
    """config.json of a run or model directory."""
    write(Path(directory) / CONFIG, to_json({"format": FORMAT, "model": asdict(cfg)}))


def open_run(
    out: Path, cfg: Config, settings: Mapping[str, Any], tokenizer: Tokenizer | None, resume: bool = True
) -> Tokenizer | None:
    """Make `out` a run directory, or check that it holds this very run. Returns the run's tokenizer.

    `settings` is how it is trained. ValueError, with nothing touched, where `out` holds another run or anything else.
    """
    if not (out / CONFIG).is_file():
        _new_run(out, cfg, settings, tokenizer)
        return tokenizer
    saved, is_run = read_config(out), (out / TRAIN).is_file()
    if not resume or not is_run:
        raise ValueError(
            f"{out} already holds a {'run' if is_run else 'model'}. "
            "Nothing was changed. Choose another directory, or go on with a run by resume=True."
        )
    check_same(asdict(saved), asdict(cfg), f"{out} holds a run of another model")
    check_same(read_json(out / TRAIN, "a run"), settings, f"{out} holds a run that is trained otherwise")
    kept = Tokenizer.load(out / TOKENIZER) if (out / TOKENIZER).is_file() else None
    if tokenizer is not None and (kept is None or kept.to_str() != tokenizer.to_str()):
        raise ValueError(
            f"{out} holds a run with another tokenizer. Nothing was changed. "
            "Leave the tokenizer out, or choose another directory."
        )
    sweep(out)
    return kept


def _new_run(out: Path, cfg: Config, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """config.json comes last: a directory without it is one whose making was interrupted."""
    names = sorted(p.name for p in out.iterdir() if p.suffix != TMP) if out.is_dir() else []
    foreign = [name for name in names if name not in (TRAIN, TOKENIZER)]
    if foreign:
        raise ValueError(
            f"{out} holds other things ({', '.join(foreign[:5])}) and no run. "
            "Nothing was changed. Choose a new or empty directory."
        )
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    if tokenizer is not None:
        write(out / TOKENIZER, tokenizer.to_str().encode("utf-8"))
    write(out / TRAIN, to_json(settings))
    write_config(out, cfg)


def read_config(directory: str | Path) -> Config:
    """The model's sizes from config.json of a run or model directory."""
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"there is no directory {directory}. Check the path, or train a model with `minids train`."
        )
    if not (directory / CONFIG).is_file():
        names = sorted(p.name for p in directory.iterdir())[:5]
        raise ValueError(
            f"{directory} is not a minids run or model: it has no {CONFIG} (it holds {', '.join(names) or 'nothing'}). "
            "Give the directory that `minids train --out` wrote."
        )
    found = read_json(directory / CONFIG, "a model")
    if found.get("format") != FORMAT:
        raise ValueError(
            f'{directory / CONFIG} is not of this package: "format" is {found.get("format")!r}, not {FORMAT!r}. '
            "A Hugging Face directory is read by minids.hf.from_hf."
        )
    try:
        return Config(**found["model"])
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{directory / CONFIG} does not describe a model of this version of minids ({error}). "
            "Use the version that wrote it, or train again."
        ) from error


def check_same(saved: Mapping[str, Any], given: Mapping[str, Any], problem: str) -> None:
    """ValueError that names the first field in which two configurations differ, with both values."""
    given = json.loads(to_json(given))  # tuples become lists, as in the file
    for name in [*given, *(n for n in saved if n not in given)]:
        if saved.get(name) != given.get(name):
            raise ValueError(
                f"{problem}: {name} is {saved.get(name)!r} there and {given.get(name)!r} here. "
                "Nothing was changed. Use the same settings to go on, or another directory to start anew."
            )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; errors say what is missing or cut short."""
    if not path.is_file():
        raise FileNotFoundError(f"{what} holds {path.name}, and {path} is missing. Check the path.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; errors say what is missing or cut short."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. Check the path.")
    try:
        return tensors_from_bytes(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    here = path.parent
    older = [p for p in checkpoints(here.parent) if p != here] if NAME.fullmatch(here.name) else []
    remedy = f"Delete {here} to go on from {older[-1]}." if older else "Copy the file again, or train again."
    return f"{path} is cut short or damaged ({path.stat().st_size:,} bytes; {error}). {remedy}"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    return tensors_to_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def to_json(value: Mapping[str, Any]) -> bytes:
    """JSON with a line for each field of the first level of nesting."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def write(path: Path, data: bytes) -> None:
    """Write a file wholly or not at all, and wait until it is on the disk."""
    tmp = path.with_name(path.name + TMP)
    with open(tmp, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)


def _flush_directory(path: Path) -> None:
    """Make renames in `path` survive a power cut. Windows has no such call."""
    if os.name != "nt":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fresh(path: Path) -> Path:
    """`path`, with whatever was there gone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path
