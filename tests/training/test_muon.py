"""Muon beside AdamW: each changes its own weights, and a resumed run goes on the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvspec.errors import VerifyError
from mvspec.training.optimizer import MuonAdamW, Optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList([self.first, self.second])

    def loss(self) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(self.table.weight)).square().sum()
        return found


def steps(count: int, resume: int = -1) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Small()
    how = Optimizer(lr=0.01, muon=0.02, weight_decay=0.1, warmup=2)

    def build() -> torch.optim.Optimizer:
        inner = model.layers.parameters()
        return how.build(model.parameters(), fused=False, inner=inner)

    optimizer = build()
    rates = how.rates(optimizer, 10)
    for step in range(count):
        if step == resume:
            kept, scheduled = optimizer.state_dict(), rates.state_dict()
            optimizer = build()
            rates = how.rates(optimizer, 10)
            optimizer.load_state_dict(kept)
            rates.load_state_dict(scheduled)
        optimizer.zero_grad()
        model.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
    return model, optimizer


def test_a_resumed_run_has_the_same_weights() -> None:
    once, optimizer = steps(6)
    resumed, other = steps(6, resume=3)
    assert isinstance(optimizer, MuonAdamW)
    for one, two in zip(once.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in other.param_groups]


def test_the_matrices_of_layers_are_muons_and_the_rest_adamws() -> None:
    model, optimizer = steps(1)
    assert isinstance(optimizer, MuonAdamW)
    muons = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
    assert muons == {id(model.first.weight), id(model.second.weight)}
    assert all(("exp_avg" in optimizer.state[p]) != (id(p) in muons) for p in model.parameters())
    # One step of Muon moves all directions of a matrix alike.
    torch.manual_seed(0)
    before = Small().first.weight * (1 - 0.1 * 0.02 / 3)  # less what decays
    change = (model.first.weight - before).detach()
    values = torch.linalg.svdvals(change)
    assert float(values[0] / values[1]) < 2


def test_muon_is_left_out_where_no_rate_is_given() -> None:
    model = Small()
    found = Optimizer().build(model.parameters(), fused=False, inner=model.layers.parameters())
    assert type(found) is torch.optim.AdamW
    with pytest.raises(VerifyError, match="muon"):
        Optimizer(muon=0.0)
