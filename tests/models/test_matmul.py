"""The products of stacks against torch's own, and their bits in stacks of any size."""

import pytest
import torch
from torch import Tensor

from mnist_ray.models import matmul as products
from mnist_ray.models.matmul import bmm, bmm_into

# rows, inner, columns: small ones that MKL computes, large ones for oneDNN, and odd sizes of both.
SHAPES = [(64, 64, 10), (64, 784, 256), (256, 64, 784), (37, 784, 53), (37, 13, 7), (64, 3136, 10), (1, 784, 2000)]


@pytest.fixture(params=["MKL", "oneDNN"], autouse=True)
def _either_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whichever this processor takes."""
    if request.param == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    call = torch.ops.mkldnn._linear_pointwise if request.param == "oneDNN" else None
    monkeypatch.setattr(products, "_ONEDNN", call)


def factors(runs: int, shape: tuple[int, int, int], *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rows, inner, columns = shape
    # In float32 the numbers of a stack are those of its first runs.
    made = [
        torch.randn(9, *size, generator=generator)[:runs].to(dtype)
        for size in ((rows, inner), (inner, columns), (columns,))
    ]
    return tuple(made)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(shape: tuple[int, int, int], transposed: bool) -> None:
    left, right, bias = factors(3, shape)
    if transposed:
        left, right = (value.transpose(1, 2).contiguous().transpose(1, 2) for value in (left, right))
    expected = left.double() @ right.double()
    tolerance = 1e-5 * shape[1] ** 0.5 * 4
    for actual, reference in (
        (bmm(left, right), expected),
        (bmm(left, right, bias=bias), expected + bias.double()[:, None]),
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), reference, rtol=0, atol=tolerance)
    target = torch.full((3, shape[0] * shape[2] + 5), torch.nan)
    place = target[:, : shape[0] * shape[2]].view(3, shape[0], shape[2])
    bmm_into(place, left, right)
    torch.testing.assert_close(place.double(), expected, rtol=0, atol=tolerance)
    assert target[:, shape[0] * shape[2] :].isnan().all()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 16 == 0])
def test_a_run_has_the_same_bits_in_a_stack_of_any_size(shape: tuple[int, int, int]) -> None:
    left, right, bias = factors(9, shape)
    whole = bmm(left, right, bias=bias)
    into = torch.empty_like(whole)
    bmm_into(into, left, right)
    for runs in (slice(0, 1), slice(3, 5), slice(2, 9), slice(8, 9)):
        assert torch.equal(bmm(left[runs], right[runs], bias=bias[runs]), whole[runs])
        part = torch.empty_like(whole[runs])
        bmm_into(part, left[runs], right[runs])
        assert torch.equal(part, into[runs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own_products(dtype: torch.dtype) -> None:
    left, right, bias = factors(2, (64, 784, 256), dtype=dtype)
    assert torch.equal(bmm(left, right), torch.bmm(left, right))
    assert torch.equal(bmm(left, right, bias=bias), torch.baddbmm(bias[:, None], left, right))
    target = torch.empty(2, 64, 256)
    bmm_into(target, left, right)
    assert torch.equal(target, torch.bmm(left, right).float())
