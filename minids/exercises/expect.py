"""What a check says when an answer is not right: `Wrong`, and helpers that raise it with the first difference found.

A check is a plain function that takes the learner's object, calls it and compares. It returns None when all is well and
raises `Wrong` when not:

    expect_close(fn(x), want)                                   # numbers, tensors, tuples, lists, dicts of them
    expect_close(fn(x), want, causes=[(too_big, "The scale is missing: divide by sqrt(N + R).")])
    expect_equal(fn(cfg), 576)                                  # exact: integers, strings, lists
    ensure(y.isfinite().all(), "finite values", y, "A row with no key at all gives 0 / 0.")
    expect_raises(ValueError, fn, -1)

`expect_close` looks at the kind of thing first, then shape, then dtype, then values, and names the first that differs.
`causes` lists results of known mistakes: pairs of (that wrong result, or a function from the answer to True or False)
and (the message). When an answer differs they are tried in order, and the first that fits is the likely cause.
Compute in float64 where you can: the default tolerance there (relative 1e-8, absolute 1e-10) leaves room for any order
of summation and none for a mistake; for float32 it is 1e-4 and 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Causes = Iterable[tuple[Any, str]]


class Wrong(Exception):
    """An answer that is not right: what was expected, what came, and what probably led to it (may be empty)."""

    def __init__(self, expected: object = "", got: object = "", cause: str = ""):
        self.expected, self.got, self.cause = show(expected), show(got), cause
        super().__init__(f"expected {self.expected}, got {self.got}. {cause}".strip())


def show(value: object) -> str:
    """A short text of a value, the same in every run: small tensors by their numbers, large ones by their shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.numel() > 8:
            return f"a {dtype} tensor of shape {list(value.shape)}"
        return f"{show(value.detach().cpu().tolist())} ({dtype})" if value.ndim else show(value.item())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and len(value) <= 8:
        inner = ", ".join(show(v) if not isinstance(v, str) else repr(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, list | tuple | set | dict):
        return f"a {type(value).__name__} of {len(value)} items"
    if callable(value):
        return f"the {'class' if isinstance(value, type) else 'function'} {getattr(value, '__name__', '')}".strip()
    text = repr(value)
    return text if len(text) <= 200 and " at 0x" not in text else f"an object of type {type(value).__name__}"


def ensure(condition: object, expected: object, got: object, cause: str = "") -> None:
    """Raise `Wrong` unless the condition holds. For properties: rows sum to one, causality, positive, unchanged."""
    if not bool(condition):
        raise Wrong(expected, got, cause)


def expect_raises(error: type[Exception], fn: Callable[..., Any], *args: Any, cause: str = "") -> None:
    """Raise `Wrong` unless `fn(*args)` raises that error. Other errors pass through and are explained as usual."""
    try:
        got = fn(*args)
    except error:
        return
    raise Wrong(f"a {error.__name__}", got, cause or f"This input breaks the rule, so it must raise {error.__name__}.")


def expect_equal(got: Any, want: Any, *, what: str = "answer", cause: str = "", causes: Causes = ()) -> None:
    """Raise `Wrong` unless `got` is exactly `want` (tensors: shape, dtype kind and every element)."""
    _compare(got, want, what, cause, causes, rtol=0.0, atol=0.0, dtype=False)


def expect_close(
    got: Any, want: Any, *, what: str = "answer", cause: str = "", causes: Causes = (),
    rtol: float | None = None, atol: float | None = None, dtype: bool = True,
) -> None:  # fmt: skip
    """Raise `Wrong` unless `got` is `want` up to rounding. `cause` is said when none of `causes` fits.

    `dtype=False` lets the answer have another precision (float32 for float64), never integers for floats.
    """
    _compare(got, want, what, cause, causes, rtol=rtol, atol=atol, dtype=dtype)


def _compare(got: Any, want: Any, what: str, cause: str, causes: Causes, **tolerance: Any) -> None:
    difference = _difference(got, want, what, **tolerance)
    if difference is None:
        return
    known = next((message for wrong, message in causes if _is_that(got, wrong, tolerance)), "")
    expected, came, guess = difference
    raise Wrong(expected, came, known or cause or guess)


def _is_that(got: Any, wrong: Any, tolerance: dict[str, Any]) -> bool:
    if callable(wrong):
        try:
            return bool(wrong(got))
        except Exception:  # a recogniser meets answers of every kind: one it cannot read is not its mistake
            return False
    return _difference(got, wrong, "", **{**tolerance, "dtype": False}) is None


Difference = tuple[str, str, str]  # expected, got, a guess at the cause


def _difference(got: Any, want: Any, what: str, **tolerance: Any) -> Difference | None:
    """The first difference between an answer and what it should be, as words; None when there is none."""
    if got is None and want is not None:
        return f"{what} = {show(want)}", "None", "The function returns nothing on this path: is a `return` missing?"
    if isinstance(want, Tensor | np.ndarray) or (_is_number(want) and not isinstance(want, bool)):
        return _tensor_difference(got, want, what, **tolerance)
    if isinstance(want, Mapping):
        return _mapping_difference(got, want, what, **tolerance)
    if isinstance(want, list | tuple):
        return _sequence_difference(got, want, what, **tolerance)
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    return None if _plainly_equal(got, want) else (f"{what} = {show(want)}", show(got), "")


def _plainly_equal(got: Any, want: Any) -> bool:
    try:
        return bool(got == want)
    except (TypeError, ValueError, RuntimeError):  # a tensor or array of many elements has no truth value
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.number)


def _sequence_difference(got: Any, want: Sequence[Any], what: str, **tolerance: Any) -> Difference | None:
    if isinstance(got, Tensor | np.ndarray):
        got = got.tolist() if all(_is_number(v) for v in want) else list(got)
    if not isinstance(got, list | tuple):
        return f"{what}: a {type(want).__name__} of {len(want)}", f"{_kind(got)}: {show(got)}", ""
    if len(got) != len(want):
        return f"{what}: {len(want)} items: {show(want)}", f"{len(got)} items: {show(got)}", ""
    pairs = (_difference(g, w, f"{what}[{i}]", **tolerance) for i, (g, w) in enumerate(zip(got, want, strict=True)))
    return next((d for d in pairs if d), None)


def _mapping_difference(got: Any, want: Mapping[Any, Any], what: str, **tolerance: Any) -> Difference | None:
    if not isinstance(got, Mapping):
        return f"{what}: a dictionary", f"{_kind(got)}: {show(got)}", ""
    if set(got) != set(want):
        missing, extra = sorted(set(want) - set(got), key=str), sorted(set(got) - set(want), key=str)
        return f"{what}: the keys {sorted(want, key=str)}", f"missing {missing}, not asked for {extra}", ""
    pairs = (_difference(got[k], want[k], f"{what}[{k!r}]", **tolerance) for k in want)
    return next((d for d in pairs if d), None)


def _tensor_difference(got: Any, want: Any, what: str, **tolerance: Any) -> Difference | None:
    is_number = _is_number(want)
    if not (isinstance(got, Tensor | np.ndarray) or _is_number(got)):
        return f"{what}: {'a number' if is_number else 'a tensor'}, {show(want)}", f"{_kind(got)}: {show(got)}", ""
    a, b = torch.as_tensor(got).detach().cpu(), torch.as_tensor(want).detach().cpu()
    if is_number and a.numel() == 1:
        a = a.reshape(())
    if a.shape != b.shape:
        return f"{what} of shape {list(b.shape)}", f"shape {list(a.shape)}", _shape_guess(a, b)
    if not is_number and (wrong_dtype := _dtype_difference(a, b, what, tolerance["dtype"])):
        return wrong_dtype
    return _value_difference(a, b, what, **tolerance)


def _shape_guess(got: Tensor, want: Tensor) -> str:
    if sorted(got.shape) == sorted(want.shape):
        return "The right sizes in another order: two axes are swapped."
    if [n for n in got.shape if n != 1] == [n for n in want.shape if n != 1]:
        return "An axis of size 1 is missing or left over: look at keepdim, squeeze and unsqueeze."
    return ""


def _dtype_difference(got: Tensor, want: Tensor, what: str, exact: bool) -> Difference | None:
    def kind(t: Tensor) -> tuple[bool, bool, bool]:
        return t.is_floating_point(), t.is_complex(), t.dtype == torch.bool

    if kind(got) == kind(want) and (got.dtype == want.dtype or not (exact and want.is_floating_point())):
        return None
    guess = "Somewhere the numbers are cast to another type." if kind(got) == kind(want) else ""
    return f"{what} of dtype {want.dtype}", f"dtype {got.dtype}", guess


def _value_difference(
    got: Tensor, want: Tensor, what: str, rtol: float | None, atol: float | None, **_: Any
) -> Difference | None:
    coarse = want.dtype != torch.float64 or (got.is_floating_point() and got.dtype != torch.float64)
    coarse = coarse and (want.is_floating_point() or want.is_complex())
    rtol = rtol if rtol is not None else (1e-4 if coarse else 1e-8)
    atol = atol if atol is not None else (1e-5 if coarse else 1e-10)
    wide = torch.complex128 if got.is_complex() or want.is_complex() else torch.float64
    a, b = got.to(wide), want.to(wide)
    bad = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if not bad.any():
        return None
    if want.ndim == 0:
        return f"{what} = {show(want.item())}", show(got.item()), ""
    index = tuple(int(i) for i in bad.nonzero()[0])
    place = f"{what}[{', '.join(map(str, index))}]"
    share = f"{int(bad.sum())} of {bad.numel()} values differ; the first is {show(got[index].item())}"
    guess = (
        "There are NaNs in it: 0 / 0, inf - inf, or a softmax over nothing but -inf."
        if (a.isnan() & ~b.isnan()).any()
        else ""
    )
    return f"{place} = {show(want[index].item())}", share, guess


def _kind(value: Any) -> str:
    return type(value).__name__
