"""What trains the tiny model quickly computes what torch does."""

import pytest
import torch
import torch.nn.functional as F

from dev.tiny import quick


@pytest.mark.parametrize("autocast", [False, True])
def test_group_norm_is_torchs_also_where_half_precision_is_asked_for(autocast):
    """Also of maps far from 0, whose deviation is lost in squares of few digits."""
    draw = torch.Generator().manual_seed(0)
    x = 30 + torch.randn(2, 64, 5, 5, generator=draw)
    weight, bias, back = (torch.randn(n, generator=draw) for n in (64, 64, x.numel()))
    found = []
    for group_norm in (quick.group_norm, F.group_norm):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and group_norm is quick.group_norm):
            y = group_norm(leaves[0], 32, *leaves[1:], 1e-5)
        found.append([y, *torch.autograd.grad(y, leaves, back.view_as(y))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-3)
