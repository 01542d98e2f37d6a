"""Nothing on disk is ever half a checkpoint; what is wrong with a directory is said, with a way out."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from minids import checkpoint
from minids.config import Config, tiny
from minids.model import Transformer
from minids.tokenizer import default_tokenizer

SMALL = dataclasses.replace(
    tiny(), vocab_size=37, dim=24, n_layers=2, inter_dim=20, n_heads=2, q_lora_rank=10, kv_lora_rank=12,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8, moe_inter_dim=8, n_routed_experts=8, n_activated_experts=3,
    max_seq_len=32, original_seq_len=32,
)  # fmt: skip


def model(cfg: Config = SMALL, seed: int = 1) -> Transformer:
    """A model whose gates have biases, in training none keeps zeros."""
    made = Transformer(cfg, torch.Generator().manual_seed(seed))
    for i, gate in enumerate(made.gates()):
        gate.bias += torch.linspace(-0.1, 0.1, len(gate.bias)) * (i + 1)
    return made.eval()


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b": torch.arange(5), "c": torch.tensor(value, dtype=torch.bfloat16)}


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# checkpoints


def test_checkpoint_comes_back_to_the_bit_with_its_types(tmp_path):
    state = {"step": 7, "share": 0.1 + 0.2, "words": ["über", "中"]}
    loaded, back = checkpoint.load(checkpoint.save(tmp_path, 7, tensors(0.3), state))
    assert back == state and loaded.keys() == tensors().keys()
    for name, t in tensors(0.3).items():
        assert loaded[name].dtype == t.dtype and torch.equal(loaded[name], t)


def test_last_checkpoints_are_kept_and_found_in_order(tmp_path):
    for step in (99_999_998, 99_999_999, 100_000_000, 9):
        checkpoint.save(tmp_path, step, tensors(), {}, keep=9)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [
        "step-00000009", "step-99999998", "step-99999999", "step-100000000",
    ]  # fmt: skip
    checkpoint.save(tmp_path, 100_000_001, tensors(), {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] != [] and len(checkpoint.checkpoints(tmp_path)) == 2
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000001"
    assert not list(tmp_path.glob("*.tmp"))


def test_same_step_can_be_saved_again(tmp_path):
    checkpoint.save(tmp_path, 3, tensors(1.0), {})
    checkpoint.save(tmp_path, 3, tensors(2.0), {})
    assert checkpoint.load(tmp_path / "step-00000003")[0]["a"][0, 0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


class Halt(BaseException):
    """Stands for a kill: no handler of OSError or Exception sees it."""


def halt_after(monkeypatch, n: int) -> list[str]:
    """Let `n` calls that change the disk pass, then halt at every further one, as a dead process would do nothing."""
    calls: list[str] = []

    def wrapped(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) > n:
                if name == "rmtree" and len(calls) == n + 1:  # a tree dies file by file
                    next(p for p in Path(args[0]).iterdir()).unlink()
                raise Halt
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoint.os, "replace", wrapped("replace", checkpoint.os.replace))
    monkeypatch.setattr(checkpoint.os, "fsync", wrapped("fsync", checkpoint.os.fsync))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", wrapped("rmtree", checkpoint.shutil.rmtree))
    monkeypatch.setattr(checkpoint.Path, "mkdir", wrapped("mkdir", checkpoint.Path.mkdir))
    return calls


def test_a_halt_between_any_two_changes_of_the_disk_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "start", 1, tensors(1.0), {"step": 1})
    checkpoint.save(tmp_path / "start", 2, tensors(2.0), {"step": 2})
    done = 0
    while True:
        run = tmp_path / f"run{done}"
        shutil.copytree(tmp_path / "start", run)
        with monkeypatch.context() as patched:
            calls = halt_after(patched, done)
            try:
                checkpoint.save(run, 3, tensors(3.0), {"step": 3})
                break
            except Halt:
                assert len(calls) > done
        found = checkpoint.checkpoints(run)
        assert len(found) >= 2
        for path in found:
            loaded, state = checkpoint.load(path)
            assert loaded["a"][0, 0] == state["step"] == int(path.name[5:])
        checkpoint.sweep(run)
        assert checkpoint.checkpoints(run) == found and sorted(run.iterdir()) == found
        done += 1
    assert done > 8  # the loop went through mkdir, fsync, replace and rmtree


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_told_and_the_last_checkpoint_stays_whole(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, tensors(), {"step": 1})
    before = files(tmp_path)
    monkeypatch.setattr(checkpoint.os, call, full_disk)
    with pytest.raises(OSError, match=r"could not save .*step-00000002 \(No space.*step-00000001, is whole") as raised:
        checkpoint.save(tmp_path, 2, tensors(), {"step": 2})
    assert raised.value.errno == errno.ENOSPC and "Free some space" in str(raised.value)
    assert files(tmp_path) == before


def test_a_full_disk_at_the_first_save_says_that_nothing_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match="nothing had been saved before"):
        checkpoint.save(tmp_path, 1, tensors(), {})


def test_unfinished_checkpoints_are_ignored_and_swept_and_strangers_stay(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), {})
    (tmp_path / "step-00000002.tmp").mkdir()
    (tmp_path / "step-00000002.tmp" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "config.json.tmp").write_bytes(b"{")
    (tmp_path / "mine.tmp").write_bytes(b"notes")
    (tmp_path / "step-by-step").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000001"
    assert len(checkpoint.sweep(tmp_path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.tmp", "step-00000001", "step-by-step"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
def test_a_file_cut_short_is_told_with_the_checkpoint_to_go_back_to(tmp_path, name, share):
    older = checkpoint.save(tmp_path, 1, tensors(), {"step": 1})
    newer = checkpoint.save(tmp_path, 2, tensors(), {"step": 2, "text": "x" * 99})
    data = (newer / name).read_bytes()
    (newer / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"{name} is cut short or damaged \(") as raised:
        checkpoint.load(newer)
    assert f"Delete {newer} to go on from {older}" in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors(), {})
    (path / "tensors.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*tensors\.safetensors"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match=r"state\.json is missing"):
        checkpoint.load(tmp_path / "step-00000005")


def test_a_checkpoint_of_another_config_is_refused_by_its_first_field(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors(), {"model": {"dim": 24, "n_heads": 2, "old": 1}})
    with pytest.raises(ValueError, match="another model configuration: n_heads is 2 there and 4 here"):
        checkpoint.load(path, {"model": {"dim": 24, "n_heads": 4, "old": 3}})
    with pytest.raises(ValueError, match="old is 1 there and None here"):
        checkpoint.load(path, {"model": {"dim": 24, "n_heads": 2}})


# models


def test_a_model_directory_gives_the_same_logits_and_tokenizer(tmp_path):
    ours, tokenizer = model(), default_tokenizer()
    theirs, back = checkpoint.load_model(checkpoint.save_model(tmp_path / "m", ours, tokenizer))
    tokens = torch.arange(22).view(2, 11)
    assert torch.equal(theirs(tokens), ours(tokens)) and theirs.cfg == SMALL
    assert back.to_str() == tokenizer.to_str()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert not theirs.training


def test_bf16_halves_the_file_keeps_biases_exact_and_loads_as_fp32(tmp_path):
    ours = model()
    small, large = (
        checkpoint.save_model(tmp_path / d, ours, dtype=t) for d, t in [("s", torch.bfloat16), ("l", torch.float32)]
    )
    sizes = [(d / "model.safetensors").stat().st_size for d in (small, large)]
    assert 0.5 < sizes[0] / sizes[1] < 0.7  # names take some room in so small a model
    theirs, tokenizer = checkpoint.load_model(small)
    assert tokenizer is None
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(b, a if name.endswith("gate.bias") else a.bfloat16().float()), name


def test_a_model_can_be_loaded_in_bf16_with_its_angles_whole(tmp_path):
    ours = model()
    theirs, _ = checkpoint.load_model(checkpoint.save_model(tmp_path, ours), dtype=torch.bfloat16)
    assert theirs.head.weight.dtype == torch.bfloat16 and theirs.gates()[0].bias.dtype == torch.float32
    assert torch.equal(theirs.freqs_cis, ours.freqs_cis)


def test_a_run_that_has_not_ended_gives_the_weights_of_its_last_checkpoint(tmp_path):
    checkpoint.write_config(tmp_path, SMALL)
    for step, seed in ((1, 5), (2, 6)):
        weights = {f"{part}.{n}": t for part, m in (("model", model(seed=seed)), ("ema", model(seed=seed + 10)))
                   for n, t in m.state_dict().items()}  # fmt: skip
        checkpoint.save(tmp_path, step, weights, {"export": "ema" if step == 2 else "model"})
    for path, seed in ((tmp_path, 16), (tmp_path / "step-00000001", 5)):
        assert torch.equal(checkpoint.load_model(path)[0].head.weight, model(seed=seed).head.weight)


def test_directories_that_hold_no_model_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        checkpoint.load_model(tmp_path / "nowhere")
    (tmp_path / "dear.txt").touch()
    with pytest.raises(ValueError, match=r"has no config\.json \(it holds dear\.txt\)"):
        checkpoint.load_model(tmp_path)
    checkpoint.write_config(tmp_path, SMALL)
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"not of this package.*minids\.hf\.from_hf"):
        checkpoint.load_model(tmp_path)
    text = json.dumps({"format": "minids", "model": dataclasses.asdict(SMALL) | {"dims": 3}})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not describe a model of this version.*dims"):
        checkpoint.load_model(tmp_path)


def test_weights_that_do_not_fit_the_config_are_named_with_both_shapes(tmp_path):
    checkpoint.save_model(tmp_path, model())
    checkpoint.write_config(tmp_path, dataclasses.replace(SMALL, n_heads=3))
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.wkv_b\.weight is \[28, 12\] in the file and \[42, 12\]"):
        checkpoint.load_model(tmp_path)
    checkpoint.write_config(tmp_path, dataclasses.replace(SMALL, n_mtp_modules=0))
    with pytest.raises(ValueError, match=r"mtp\.0\.[a-z0-9_.]+ is \[[0-9, ]+\] in the file and nothing by the config"):
        checkpoint.load_model(tmp_path)


def test_saving_a_model_over_another_is_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint.save_model(tmp_path, model(seed=1))
    before = files(tmp_path)
    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"could not save .*model\.safetensors"):
        checkpoint.save_model(tmp_path, model(seed=2))
    assert files(tmp_path) == before


def test_shipped_model_is_found_or_its_absence_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "minids" / "checkpoint.py"))
    with pytest.raises(FileNotFoundError, match="does not run from a checkout"):
        checkpoint.shipped()
    checkpoint.save_model(tmp_path / "assets" / "tiny", model())
    assert checkpoint.shipped() == (tmp_path / "assets" / "tiny").resolve()


def test_files_are_json_and_safetensors_with_no_pickle(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors(), {"step": 1})
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]
    json.loads((path / "state.json").read_text(encoding="utf-8"))
    data = (path / "tensors.safetensors").read_bytes()
    json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # the format's header
