"""Every test runs with the shapes in minids' signatures checked, one thread and fixed random numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jaxtyping
import pytest
import torch


def checked(fn: Callable) -> Callable:
    """What jaxtyping has a function's parameters checked with before each call, and its result after it.

    For the second it hands over all annotations again. Only the result's is kept: the parameters' sizes are known by
    then, and to look at them twice takes time. An int will do for a float, as Python's own typing rules say.
    """
    if fn.__annotations__.get("return", Any) is not Any:
        fn.__annotations__ = {"return": fn.__annotations__["return"]}
    return beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))(fn)


# Before any test imports minids: from here on each call of a function compares its tensors with the shapes written in
# its signature, in all modules that write shapes. The hook takes the checker by its name.
PACKAGE = Path(__file__).parent.parent / "minids"
SHAPED = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
jaxtyping.install_import_hook(SHAPED, f"{__name__}.checked")

from minids.processes import COPIED  # noqa: E402, a module without shapes

COPIED.append("torch._dynamo")  # torch imports it when an optimizer is made, in a second: here once for all processes

torch.set_num_threads(1)  # workers share the cores, and sums come out the same on every machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests in a browser come first: they take longest, and much of it is waiting that other tests can use."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for each test, whichever ran before it."""
    torch.manual_seed(0)
