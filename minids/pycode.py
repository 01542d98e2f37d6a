"""The functions of this Python's own standard library, as text: code to train on that every learner already has.

Not in the paper: DeepSeek trains on public code; here nothing is downloaded and nothing of others is shipped. Files are
parsed (`ast`), and each function at the top of a file or of a class becomes one document, its indentation taken off.
The text differs between Python versions, so no result that rests on it is exact across machines.

Differs from the paper: a few megabytes of one language.
Left out: tests, tables (encodings), documentation data, nested functions on their own, functions over 4 KB.
Notebook: 01_tokens.
"""

from __future__ import annotations

import ast
import os
import random
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy
import torch

_SKIP = frozenset(
    [
        "test",
        "tests",
        "encodings",
        "pydoc_data",
        "idlelib",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "ensurepip",
        "turtledemo",
        "__pycache__",
        "__phello__",
        "testing",
        "_vendor",
    ]
)
_SKIP_FILES = ("_sysconfigdata", "test_", "pydoc_topics")  # the first differs by machine
_MIN_BYTES, _MAX_BYTES = 60, 4096
_MIN_TOTAL = 500_000  # bytes; less than this is not a library's source


def sources(root: Path) -> list[Path]:
    """The Python files under `root` that are worth reading, in a fixed order."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _SKIP]  # os.walk then leaves these out
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_SKIP_FILES)]
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def functions_in(text: str) -> Iterator[str]:
    """The functions at the top of a file, and of its classes, dedented. A file that does not parse has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in others' strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = text.splitlines(keepends=True)
    for node in _definitions(tree):
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        body = textwrap.dedent("".join(lines[start - 1 : node.end_lineno])).rstrip() + "\n"
        if _MIN_BYTES <= len(body.encode()) <= _MAX_BYTES:
            yield body


def _definitions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node)


def _read(root: Path, at_most: int) -> list[str]:
    """The different functions under `root`, up to `at_most` bytes, from files drawn in a fixed shuffled order."""
    files = sources(root)
    random.Random(0).shuffle(files)
    found: dict[str, None] = {}
    total = 0
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for function in functions_in(text):
            if function not in found:
                found[function] = None
                total += len(function.encode())
        if total >= at_most:
            break
    return list(found)


def _generated(seed: int) -> str:
    """A small correct function, for a Python without any source at hand."""
    rng = random.Random(f"code {seed}")
    name, verb = (
        rng.choice(["items", "values", "names", "rows", "words"]),
        rng.choice(["count", "total", "first", "longest"]),
    )
    n = rng.randint(2, 99)
    loop = f"    for item in {name}:\n"
    body = {
        "count": f"    found = 0\n{loop}        if item > {n}:\n            found += 1\n    return found\n",
        "total": f"    result = {n}\n{loop}        result += item\n    return result\n",
        "first": f"{loop}        if item == {n}:\n            return item\n    return None\n",
        "longest": f"    best = {n}\n{loop}        best = max(best, len(item))\n    return best\n",
    }
    return f"def {verb}_{name}_{seed}({name}):\n" + body[verb]


@lru_cache(maxsize=2)
def functions(at_most: int = 4_000_000) -> tuple[str, ...]:
    """Every function to train on, each once. Falls back, with a warning, where the library's source is missing."""
    for name, root in _roots():
        found = _read(root, at_most)
        if sum(map(len, found)) >= _MIN_TOTAL:
            return tuple(found)
        warnings.warn(f"{name} has no Python source at {root}; trying the next source of code", stacklevel=2)
    return tuple(_generated(seed) for seed in range(10_000))


def _roots() -> list[tuple[str, Path]]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    installed = [(m.__name__, Path(m.__file__ or "").parent) for m in (torch, numpy)]
    return [("the standard library", stdlib), *installed]
