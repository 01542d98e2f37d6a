"""The rules of the house: imports run one way, files are small, modules keep no state, nothing else lies on top."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minids"

# A module imports from its own floor and from those above it in this list; training and systems stand side by side.
FLOORS = [
    {"config", "costs", "layers", "rope", "attention", "mla", "router", "moe", "mtp", "model"},
    {"tokenizer", "corpus", "tasks", "alphabet", "needle"}
    | {"events", "grammar", "lexicon", "maths", "phrases", "primer", "pycode", "stories", "tales", "world"},
    {"optim", "checkpoint", "train", "recipe", "fp8", "fp8_layers", "sft", "grpo", "rollout", "rl", "router_lab"}
    | {"pipeline", "dualpipe", "simulator", "pipeline_run", "expert_parallel", "network", "plan", "eplb"}
    | {"processes", "sharded", "scoreboard", "r1", "r1_stages", "language_mixing", "reward_model"}
    | {"verdicts", "distill", "run", "parallel", "zero"},
    {"generate", "speculate", "drafter", "kv8", "serving", "pools", "hf", "hf_config"}
    | {"service", "http_params", "http_api", "http_server"},
    {"plot", "widgets", "exercises", "ledger", "cli", "__main__"},
]
TOP = {
    "README.md",
    "requirements.txt",
    "notebooks",
    "minids",
    "assets",
    "tests",
    "pyproject.toml",
    "Makefile",
    "LICENSE",
}
HEAVY = {"matplotlib", "ipywidgets", "IPython", "jupyterlab", "transformers"}
EXTRA = {"starlette", "uvicorn"}  # what only `minids serve` needs, and a plain install lacks
FILES = sorted(PACKAGE.rglob("*.py"))
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
CHANGES = {"append", "extend", "add", "update", "pop", "clear", "insert", "remove", "setdefault", "popitem"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def floor_of(name: str) -> int:
    concept = name.split(".")[0]
    found = [i for i, floor in enumerate(FLOORS) if concept in floor]
    assert found, f"minids.{name} stands on no floor: give it one in this test, or put its content where it belongs"
    return found[0]


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of the package that a file imports, without `minids.`, and the line."""
    own = ["minids", *name_of(path).split(".")]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + (path.name == "__init__.py")] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("minids."):
                yield known_part(name.removeprefix("minids.")), node.lineno


def known_part(name: str) -> str:
    """The module in `module.name`: the longest beginning that is a file or a folder."""
    parts = name.split(".")
    while parts and not any(PACKAGE.joinpath(*parts).with_suffix(s).exists() for s in (".py", "")):
        parts.pop()
    return ".".join(parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    if name_of(path):
        here = floor_of(name_of(path))
        too_high = [(name, line) for name, line in imports_of(path) if name and floor_of(name) > here]
        assert too_high == []


def test_there_is_no_cycle_of_imports() -> None:
    graph = {name_of(p): {name for name, _ in imports_of(p)} - {name_of(p), ""} for p in FILES}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}, "these modules import one another"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_package_is_imported_at_the_top_of_a_file_not_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert [line for _, line in imports_of(path) if line in inside] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_at_most_400_lines_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_keeps_no_state(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    containers = dict(module_containers(tree))
    assert [n for n in containers if not (n.isupper() or n.startswith("__"))] == [], "a constant has a name in capitals"
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            own = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            assert changed_names(function) & (containers.keys() - own) == set(), "a constant is changed"


def module_containers(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, MUTABLE):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node.value) for t in targets if isinstance(t, ast.Name))


def changed_names(function: ast.FunctionDef) -> set[str]:
    """Names whose content a function changes: x[0] = 1, x.append(1)."""
    stores = {n.value for n in ast.walk(function) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)}
    calls = {n.func for n in ast.walk(function) if isinstance(n, ast.Call)}
    stores |= {f.value for f in calls if isinstance(f, ast.Attribute) and f.attr in CHANGES}
    return {n.id for n in stores if isinstance(n, ast.Name)}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(run.stdout.split())


def test_importing_minids_loads_neither_torch_nor_plotting() -> None:
    assert loaded_after("import minids") & (HEAVY | {"torch"}) == set()


def test_nothing_below_the_face_loads_plotting_or_a_notebook() -> None:
    below = [name_of(p) for p in FILES if name_of(p) and floor_of(name_of(p)) < len(FLOORS) - 1]
    assert loaded_after("\n".join(f"import minids.{name}" for name in below)) & HEAVY == set()


def test_the_command_line_and_the_rest_of_the_package_load_without_the_extra_for_serving() -> None:
    known = [name_of(p) for p in FILES if name_of(p) not in ("", "http_api", "http_server", "__main__")]
    assert loaded_after("\n".join(f"import minids.{name}" for name in known)) & EXTRA == set()


def test_nothing_else_lies_at_the_top_of_the_repository() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so what belongs to the repository is not known")
    listing = ["ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run([git, *listing], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {name.split("/")[0].strip('"') for name in files}
    assert {name for name in top if not name.startswith(".")} - TOP == set()
