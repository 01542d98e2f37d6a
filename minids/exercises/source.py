"""Sources of solutions and stubs: read from functions, cut down to what is handed out, run as if in a notebook."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import secrets
import textwrap
from collections.abc import Callable
from typing import Any

Definition = ast.FunctionDef | ast.ClassDef


def clean(text: str) -> str:
    """A text without common indentation and outer blank lines, ending in one newline."""
    return textwrap.dedent(text).strip("\n") + "\n"


def source_of(answer: Callable[..., Any] | str) -> str:
    """The source of a function or class without decorators, `name__variant` as `name`; a text as it is, dedented."""
    if isinstance(answer, str):
        return clean(answer)
    text = textwrap.dedent(inspect.getsource(answer))
    definition = ast.parse(text).body[0]
    text = "".join(text.splitlines(keepends=True)[definition.lineno - 1 :])
    name = answer.__name__
    return re.sub(rf"\b{re.escape(name)}\b", name.split("__")[0], text) if "__" in name.strip("_") else text


def stub_of(source: str) -> str:
    """What is handed out: the definitions with their docstrings, every body `raise NotImplementedError`."""
    lines = source.splitlines()
    for node in sorted(_functions(ast.parse(source)), key=lambda n: -n.lineno):
        first = node.body[0]
        start = (first.end_lineno or first.lineno) if ast.get_docstring(node) is not None else first.lineno - 1
        before = lines[first.lineno - 1][: first.col_offset]  # the indentation, or `def f(x): ` on the same line
        lines[start : node.end_lineno] = [before + "raise NotImplementedError"]
    return "\n".join(lines) + "\n"


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    methods = [m for c in tree.body if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)]
    return [n for n in tree.body if isinstance(n, ast.FunctionDef)] + methods


def names_in(source: str) -> list[str]:
    """What a source defines at its top level, in its order: functions, classes, plain variables."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, Definition):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def looks_like_source(text: str, names: list[str]) -> bool:
    """Whether a text is Python that defines all these names (and not itself the answer to an exercise)."""
    try:
        return set(names) <= set(names_in(text))
    except SyntaxError:
        return False


def defines_only_callables(source: str) -> bool:
    """Whether a source holds functions and classes and no plain variable."""
    return not any(isinstance(node, ast.Assign) for node in ast.parse(source).body)


def run(source: str, label: str, imports: dict[str, Any]) -> dict[str, Any]:
    """The names after running a source in a namespace of its own; tracebacks and `inspect` find its lines."""
    filename = f"<{label}, {secrets.token_hex(4)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = {**imports, "__name__": "learner"}
    exec(compile(source, filename, "exec"), namespace)
    return namespace
