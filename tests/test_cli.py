"""The command line: each command does what its help says, and what a user can mend ends with one plain line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minids import checkpoint, cli
from minids.cli import main
from minids.config import Config, tiny
from minids.generate import complete, generate, stream_text
from minids.model import Transformer
from minids.recipe import HELP, TrainConfig
from minids.tokenizer import default_tokenizer

CFG = replace(tiny(), n_layers=2, dim=32, inter_dim=40, moe_inter_dim=16, max_seq_len=200, original_seq_len=200)
SIZES = ["--set", "n_layers=2", "dim=32", "inter_dim=40", "moe_inter_dim=16", "max_seq_len=200", "original_seq_len=200"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """A model directory with random weights."""
    directory = tmp_path_factory.mktemp("model")
    model = Transformer(replace(CFG, init_std=0.3), torch.Generator().manual_seed(0))
    checkpoint.save_model(directory, model, default_tokenizer())
    return str(directory)


def test_info_counts_v3_in_both_conventions(capsys):
    assert main(["info", "v3"]) == 0
    out = capsys.readouterr().out
    for number in ("671,026,419,200", "36,625,618,432", "37,552,297,472", "11,610,068,224", "70,272"):
        assert number in out
    assert "without the input embedding" in out and "682,636,487,424" in out


@pytest.mark.parametrize("name", ["tiny", "v2-lite", "v2", "dense_active"])
def test_info_agrees_with_the_model_built_on_the_meta_device(name, capsys):
    assert main(["info", name]) == 0
    assert "tensor by tensor" in capsys.readouterr().out


def test_info_counts_on_the_meta_device_without_torchs_compiler():
    code = "import sys; from minids.cli import main; main(['info', 'tiny']); sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_info_reads_our_directories_and_those_of_hugging_face(small, tmp_path, capsys):
    assert main(["export-hf", str(tmp_path / "hf"), "--model", small]) == 0
    capsys.readouterr()
    outs = []
    for directory in (small, str(tmp_path / "hf")):
        assert main(["info", directory]) == 0
        outs.append(capsys.readouterr().out.replace(directory, "X"))
    assert outs[0] == outs[1]


def test_train_writes_a_model_and_goes_on_with_it(tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["train", "--steps", "3", "--batch-size", "1", "--seq-len", "32", "--out", out, "--quiet", *SIZES]
    assert main(command) == 0
    assert "3 steps" in capsys.readouterr().out
    model, tokenizer = checkpoint.load_model(out)
    assert (model.cfg.n_layers, model.cfg.dim) == (2, 32) and tokenizer is not None
    assert main(command) == 0  # nothing left to do
    assert main([*command, "--lr", "0.1"]) == 2
    assert "lr" in capsys.readouterr().err


def test_every_training_option_is_a_field_of_the_recipe():
    import dataclasses

    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(HELP) <= fields
    parsed = vars(cli._parser().parse_args(["train", "--weights", "en=0.5,code=0.5", "--minutes", "1"]))
    assert parsed["weights"] == {"en": 0.5, "code": 0.5} and parsed["minutes"] == 1.0
    assert parsed["lr"] == TrainConfig(steps=1).lr


@pytest.mark.parametrize("chat", [False, True])
def test_generate_prints_what_the_library_generates(small, chat, capsys):
    options = ["--seed", "5", "--max-new-tokens", "30", "--temperature", "1.3", "--top-p", "0.9"]
    assert main(["generate", "Mia 小明", "--model", small, *options, *["--chat"] * chat]) == 0
    model, tokenizer = checkpoint.load_model(small)
    sampling = {"temperature": 1.3, "top_p": 0.9, "generator": torch.Generator().manual_seed(5)}
    text = complete(model, tokenizer, "Mia 小明", 30, chat, **sampling)
    assert text and capsys.readouterr().out == ("" if chat else "Mia 小明") + text + "\n"


def test_without_a_prompt_a_story_begins_and_with_an_empty_one_anything(small, capsys):
    for prompt, begins in (([], "Once upon a time"), ([""], ""), (["--chat"], "")):
        assert main(["generate", *prompt, "--model", small, "--seed", "5", "--max-new-tokens", "20"]) == 0
        model, tokenizer = checkpoint.load_model(small)
        how = {"temperature": 0.7, "top_p": 0.95, "generator": torch.Generator().manual_seed(5)}
        text = complete(model, tokenizer, begins, 20, "--chat" in prompt, **how)
        assert capsys.readouterr().out == begins + text + "\n"


def test_streamed_text_is_the_decoded_tokens_and_its_prompt_begins_a_document(small):
    model, tokenizer = checkpoint.load_model(small)
    pieces, seed = [], torch.Generator().manual_seed(2)
    run = stream_text(model, tokenizer, "Once", 40, generator=seed)
    while True:
        try:
            pieces.append(next(run))
        except StopIteration as end:
            reason = end.value
            break
    ids = tokenizer.encode("Once", bos=True)
    tokens = generate(model, ids, 40, stop_ids=[tokenizer.eos], generator=torch.Generator().manual_seed(2))
    assert "".join(pieces) == tokenizer.decode(tokens) and reason == tokens.reason
    assert len(pieces) > 3 and all(pieces)


@pytest.mark.parametrize("seed", range(3))
def test_a_stop_string_ends_streamed_text_wherever_tokens_begin(small, seed, capsys):
    model, tokenizer = checkpoint.load_model(small)
    options = ["--model", small, "--seed", str(seed), "--max-new-tokens", "40", "--temperature", "1", "--top-p", "1"]

    def text(*stop):
        return complete(model, tokenizer, "", 40, stop=stop, generator=torch.Generator().manual_seed(seed))

    whole = text()
    for at in (0, 11, 12, 13):
        stop = whole[at : at + 4]  # the random model's tokens are one to a few characters: this spans some
        assert text(stop) == text("never there", stop + stop, stop) == whole[: whole.index(stop)]
        assert main(["generate", "", *options, "--stop", "never there", "--stop", stop]) == 0
        assert capsys.readouterr().out == whole[: whole.index(stop)] + "\n"
    assert text(whole[-3:] + "more") == whole  # what looked like a beginning is let go at the end


def test_eval_reports_every_domain_the_balance_and_the_judge(small, capsys):
    assert main(["eval", "--model", small, "--rows", "2", "--seq-len", "33", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("en", "zh", "maths", "code", "bits per byte", "MaxVio", "0% of 1 without a fault"):
        assert word in out


def test_a_model_comes_back_from_the_hugging_face_format(small, tmp_path, capsys):
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["export-hf", there, "--model", small]) == 0
    assert main(["import-hf", there, back]) == 0
    (was, tokenizer), (now, same) = checkpoint.load_model(small), checkpoint.load_model(back)
    assert same is not None and tokenizer is not None
    assert now.cfg == was.cfg and same.encode("Mia") == tokenizer.encode("Mia")
    assert all(torch.equal(a, b) for a, b in zip(was.state_dict().values(), now.state_dict().values(), strict=True))


def test_weights_are_taken_over_without_a_foreign_tokenizer(small, tmp_path, capsys):
    there = tmp_path / "there"
    main(["export-hf", str(there), "--model", small])
    (there / "tokenizer.json").write_text(json.dumps({"model": {}}))
    assert main(["import-hf", str(there), str(tmp_path / "back")]) == 0
    assert "the tokenizer is not" in capsys.readouterr().err
    assert main(["generate", "--model", str(tmp_path / "back")]) == 2
    assert "text needs a tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "v9"], "there is no preset 'v9'; the presets are tiny"),
        (["info", "no/such/place"], "there is no directory no/such/place"),
        (["generate", "--model", "no/such/place"], "there is no directory"),
        (["generate", "--model", "SMALL", "--temperature", "-1"], "temperature must be 0"),
        (["generate", "word " * 300, "--model", "SMALL"], "must fit into max_seq_len = 200"),
        (["train", "--preset", "v3", "--out", "OUT"], "at most 1,000,000,000 parameters; got 671,026,419,200"),
        (["train", "--set", "width=3", "--out", "OUT"], "--set takes a size of the model; got 'width=3'"),
        (["train", "--set", "dim=x", "--out", "OUT"], "--set dim wants int; got 'x'"),
        (["train", "--set", "n_heads=0", "--out", "OUT"], "n_heads must be positive"),
        (["train", "--corpus", "no.txt", "--steps", "1", "--out", "OUT"], "a corpus is a text file"),
        (["train", "--steps", "1", "--minutes", "2", "--out", "OUT"], "limited by steps or by minutes"),
        (["export-hf", "OUT", "--model", "DENSE"], "the DeepSeek format holds MLA models"),
        (["import-hf", "SMALL", "OUT"], "model_type must be deepseek_v3"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(command, message, small, tmp_path, capsys):
    dense = tmp_path / "dense"
    if "DENSE" in command:
        gqa = Config(vocab_size=2048, dim=32, n_layers=1, n_dense_layers=1, inter_dim=40, n_heads=2, attn="gqa",
                     n_kv_heads=1, qk_nope_head_dim=0, qk_rope_head_dim=16, v_head_dim=16)  # fmt: skip
        checkpoint.save_model(dense, Transformer(gqa))
    places = {"SMALL": small, "OUT": str(tmp_path / "out"), "DENSE": str(dense)}
    assert main([places.get(word, word) for word in command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"minids {command[0]}: ") and message in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_one_line_and_exit_code_130(small, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("minids.cli.generate.stream_text", interrupted)
    assert main(["generate", "--model", small]) == 130
    assert capsys.readouterr().err.strip() == "minids: stopped by Ctrl-C."


def test_the_help_teaches_by_examples_and_the_module_is_the_command():
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-m", "minids", "--help"], capture_output=True, env=environment, check=True)
    text = done.stdout.decode()
    for command in ("info v3", "train --minutes 10 --out runs/mine", "generate", "eval", "export-hf", "import-hf"):
        assert f"minids {command}" in text


def test_chinese_reaches_a_console_that_cannot_show_it(small):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [
        sys.executable,
        "-m",
        "minids",
        "generate",
        "小明",
        "--model",
        small,
        "--max-new-tokens",
        "2",
        "--seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout.decode("utf-8").startswith("小明")


def test_a_reader_that_goes_away_is_no_error(small):
    command = [sys.executable, "-m", "minids", "generate", "x", "--model", small, "--seed", "1"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.read(1)
    run.stdout.close()
    assert run.stderr.read().decode() == ""
    run.stderr.close()
    assert run.wait() == 0


def test_no_command_names_a_file_outside_the_given_places(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export-hf", "out", "--model", small]) == 0
    assert sorted(p.name for p in Path().iterdir()) == ["out"]
