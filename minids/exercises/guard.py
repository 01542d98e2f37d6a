"""Run a learner's code so that nothing it does outlives the check.

Errors become words, random states and modes are put back, inputs are copies.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import random
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minids.exercises.expect import Wrong


@contextmanager
def sandbox(seed: int) -> Iterator[None]:
    """Inside: seeded random numbers, gradients on. After: random states, gradient mode and default dtype as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    plain, numpys, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(True):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)
        torch.set_default_dtype(dtype)


def is_blank(obj: object) -> bool:
    """Whether this is the stub as handed out: None, `...`, or source in which a statement or a value is still `...`."""
    if obj is None or obj is ...:
        return True
    if not (inspect.isfunction(obj) or inspect.isclass(obj)):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj)))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt: the call itself will tell
        return False
    return any(_is_gap(node) for node in ast.walk(tree))


def _is_gap(node: ast.AST) -> bool:
    holds_value = isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return)
    return holds_value and isinstance(node.value, ast.Constant) and node.value.value is ...


def is_unattempted(error: BaseException, files: set[str]) -> bool:
    """Whether the error is the stub's own `raise NotImplementedError`, not one from deep inside a library."""
    frames = list(_frames(error.__traceback__))
    return isinstance(error, NotImplementedError) and bool(frames) and frames[-1][0] in files


def explain(error: BaseException, files: set[str]) -> Wrong:
    """The learner's exception in words: its type and message, and the line of the learner's own code it came from."""
    where = _their_line(error, files)
    if isinstance(error, KeyboardInterrupt):
        return Wrong(
            "an answer", f"you stopped it{where}", "A loop that does not end? Look at what should make it stop."
        )
    if isinstance(error, SystemExit):
        return Wrong("an answer", f"the code asked Python to exit{where}", "Return the answer instead.")
    if isinstance(error, RecursionError):
        return Wrong("an answer", f"RecursionError{where}", "The function calls itself and never comes to an end.")
    if isinstance(error, TypeError) and not where:
        return Wrong(
            "a function with the arguments of the stub", f"TypeError: {error}", "Were arguments renamed, added or lost?"
        )
    first_line = (str(error).strip().splitlines() or [""])[0]
    return Wrong("an answer", f"{type(error).__name__}: {first_line}{where}", "")


def _frames(tb: TracebackType | None) -> Iterator[tuple[str, int]]:
    while tb is not None:
        yield tb.tb_frame.f_code.co_filename, tb.tb_lineno
        tb = tb.tb_next


def _their_line(error: BaseException, files: set[str]) -> str:
    lines = [(name, number) for name, number in _frames(error.__traceback__) if name in files or "ipykernel_" in name]
    if not lines:
        return ""
    name, number = lines[-1]
    text = linecache.getline(name, number).strip()
    return f" (line {number} of your cell: {text})" if text else f" (line {number} of your cell)"


def files_of(*objects: object) -> set[str]:
    """The names of the files (or notebook cells) in which the learner's objects were written."""
    return {code.co_filename for obj in objects for code in _codes(obj)}


def _codes(obj: object) -> Iterator[CodeType]:
    if inspect.isclass(obj):
        for member in vars(obj).values():
            yield from _codes(getattr(member, "__func__", member))
    elif (code := getattr(inspect.unwrap(obj) if callable(obj) else obj, "__code__", None)) is not None:
        yield code
    elif not inspect.isbuiltin(obj) and type(obj).__module__ == "__main__":
        yield from _codes(type(obj))


def hand_copies(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` that gets copies of the tensors, arrays, lists and dictionaries it is called with, and may not change them.

    A change is reported as `Wrong`, by the argument's name. Gradients flow through the copies to the originals.
    Parameters and modules are handed over as they are.
    """

    @functools.wraps(fn)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        theirs, their_kwargs = [_copy(a) for a in args], {k: _copy(v) for k, v in kwargs.items()}
        result = fn(*theirs, **their_kwargs)
        changed = [_argument_name(fn, i) for i, (a, b) in enumerate(zip(args, theirs, strict=True)) if not _same(a, b)]
        changed += [k for k, v in kwargs.items() if not _same(v, their_kwargs[k])]
        if changed:
            cause = "x += ..., x[...] = ... and methods ending in _ write into the caller's data: make a new value."
            raise Wrong(f"`{changed[0]}` left as it was", f"`{changed[0]}` changed by the function", cause)
        return result

    return guarded


def _copy(value: Any) -> Any:
    if isinstance(value, torch.nn.Parameter):
        return value  # an optimiser step is meant to reach it
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copy(v) for v in value)
    if type(value) is dict:
        return {k: _copy(v) for k, v in value.items()}
    return copy.copy(value) if isinstance(value, np.ndarray | set | bytearray) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        a, b = a.detach(), b.detach()
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is dict:
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    return a is b or not isinstance(a, set | bytearray) or a == b


def _argument_name(fn: Callable[..., Any], index: int) -> str:
    try:
        return list(inspect.signature(fn).parameters)[index]
    except (IndexError, TypeError, ValueError):
        return f"argument {index + 1}"
