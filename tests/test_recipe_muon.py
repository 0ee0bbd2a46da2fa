"""Muon: orthogonal steps, and the same as torch's own where that is exact enough."""

import pytest

torch = pytest.importorskip("torch")

from models.recipe.muon import Muon, orthogonal  # noqa: E402


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 24)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert found.min() > 0.5
    assert found.max() < 1.3


def test_steps_are_those_of_torch_up_to_bfloat16():
    torch.manual_seed(0)
    start = torch.randn(16, 8)
    gradients = [torch.randn(16, 8) for _ in range(3)]
    ends = []
    for optimizer in (Muon, torch.optim.Muon):
        matrix = torch.nn.Parameter(start.clone())
        muon = optimizer([matrix], lr=0.02, momentum=0.95, weight_decay=0.01)
        for gradient in gradients:
            matrix.grad = gradient.clone()
            muon.step()
        ends.append(matrix.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-3)
