"""The check of shapes that all tests run under: it refuses arguments and results that a signature does not allow."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from minids.layers import MLP
from minids.router import expert_load, max_violation, sequence_balance_loss


def test_arguments_of_a_wrong_shape_or_type_are_refused_and_so_are_two_that_do_not_agree() -> None:
    with pytest.raises(TypeCheckError, match=r"parameters of minids\.router\.expert_load"):
        expert_load(torch.zeros(3, dtype=torch.long), 5)
    with pytest.raises(TypeCheckError, match=r"parameters of minids\.router\.max_violation"):
        max_violation(torch.ones(3, 4))
    with pytest.raises(TypeCheckError, match=r"parameters of minids\.router\.sequence_balance_loss"):
        sequence_balance_loss(torch.rand(2, 3, 5), torch.zeros(2, 4, 1, dtype=torch.long))


def test_a_result_is_compared_with_the_sizes_that_the_arguments_had() -> None:
    mlp = MLP(6, 4)
    mlp.w2 = torch.nn.Linear(4, 7)
    with pytest.raises(TypeCheckError, match=r"return value of minids\.layers\.MLP\.forward"):
        mlp(torch.randn(2, 6))
