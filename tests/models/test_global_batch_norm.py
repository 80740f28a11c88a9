"""Batch norm over ranks; one rank equals torch's own. tests/training/test_ranks.py holds several to one."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mnist_ray.errors import ConfigError
from mnist_ray.models.global_batch_norm import share_statistics
from mnist_ray.models.ranks import Ranks

KINDS = {
    "1d": (nn.BatchNorm1d, (6,), {}),
    "1d of sequences": (nn.BatchNorm1d, (6, 5), {}),
    "2d": (nn.BatchNorm2d, (6, 3, 4), {}),
    "3d": (nn.BatchNorm3d, (6, 2, 3, 2), {}),
    "without parameters": (nn.BatchNorm2d, (6, 3, 4), {"affine": False}),
    "cumulative averages": (nn.BatchNorm2d, (6, 3, 4), {"momentum": None}),
    "without running statistics": (nn.BatchNorm2d, (6, 3, 4), {"track_running_stats": False}),
    "own arguments": (nn.BatchNorm1d, (6,), {"eps": 0.1, "momentum": 0.7}),
}


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shared(plain: nn.Module) -> nn.Module:
    """A copy that would take the statistics of several ranks."""
    copy = deepcopy(plain)
    share_statistics(nn.Sequential(copy), Ranks())
    assert isinstance(copy, type(plain))
    return copy


def test_a_frozen_weight_leaves_the_bias_its_gradient_and_what_is_off_stays_off() -> None:
    plain = nn.BatchNorm1d(3)
    plain.weight.requires_grad_(False)
    ours = shared(plain)
    ours(torch.randn(4, 3)).square().sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert not shared(nn.BatchNorm2d(3).eval()).training


def test_a_batch_norm_of_its_own_kind_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        """Does more than a batch norm."""

    with pytest.raises(ConfigError, match=r"num_workers=2: 0.norm \(Own\) is a batch norm of its own kind"):
        share_statistics(nn.Sequential(nn.ModuleDict({"norm": Own(3)})), Ranks(0, 2))


@pytest.mark.parametrize("name", KINDS)
def test_one_rank_equals_torchs_batch_norm(name: str) -> None:
    kind, shape, arguments = KINDS[name]
    plain = kind(6, **arguments).double()
    for number, parameter in enumerate(plain.parameters()):
        parameter.data = random_tensor(6, seed=10 + number)
    ours = shared(plain)
    for step in range(3):
        inputs, gradient = (2 + 3 * random_tensor(8, *shape, seed=seed) for seed in (step, 100 + step))
        results = []
        for module in (plain, ours):
            module.zero_grad()
            given = inputs.clone().requires_grad_()
            outputs = module(given)
            outputs.backward(gradient)
            results.append((outputs, given.grad, [parameter.grad for parameter in module.parameters()]))
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)
    inputs = random_tensor(8, *shape, seed=9)
    torch.testing.assert_close(ours.eval()(inputs), plain.eval()(inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)


def test_bfloat16_sums_in_float32() -> None:
    plain = nn.BatchNorm1d(3)
    ours = shared(plain)
    inputs = 100 + random_tensor(512, 3, seed=0).to(torch.bfloat16)
    outputs = ours(inputs)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, plain(inputs.float()).to(torch.bfloat16), rtol=0, atol=2**-6)
    torch.testing.assert_close(ours.running_mean, plain.running_mean, rtol=1e-6, atol=0)
