"""Every test runs with the shapes in minids' signatures checked, one thread and fixed random numbers."""

import beartype
import jaxtyping
import pytest
import torch

# Before any test imports minids: from here on each call of a function of the package compares its tensors with the
# shapes written in its signature.
# Where a float is asked for an int will do, as Python's own typing rules say; the hook takes the checker by its name.
beartype.numeric_tower = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
jaxtyping.install_import_hook("minids", "beartype.numeric_tower")

torch.set_num_threads(1)  # two workers share two cores, and sums come out the same on every machine


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for each test, whichever ran before it."""
    torch.manual_seed(0)
