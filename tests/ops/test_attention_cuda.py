"""The attention family on a real GPU: `pytest -m gpu`. The same kernels run on the emulator in tests/simt."""

import numpy as np
import pytest
import torch

from tenfold import _core, ops
from tenfold.ops.attention import attention, attention_kvpacked, attention_qkvpacked
from tenfold.ops.reference import attention as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

TYPES = [torch.float32, torch.bfloat16]
ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value, or of 1
SIZES = [(16, 64, 64, 6, 64), (2, 130, 77, 3, 40), (1, 5, 33, 1, 160), (3, 16, 1, 2, 1), (0, 4, 4, 1, 8)]


def assert_near(got, want, dtype):
    got, want = got.detach().cpu().double(), want.detach()
    assert got.shape == want.shape
    if want.numel():
        assert (got - want).abs().max() <= ERROR[dtype] * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_results_and_gradients(sizes, dtype, eps):
    samples, queries, keys, heads, width = sizes
    shapes = ((samples, n, heads, width) for n in (queries, keys, keys))
    leaves = [torch.randn(shape).to(dtype).cuda().requires_grad_() for shape in shapes]
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    mask = torch.rand(samples, keys) < 0.7
    mask[:1] = False  # a sample without keys
    out = attention(*leaves, key_mask=mask.cuda(), qk_norm_eps=eps)
    want = reference.attention(*exact, mask, None, eps)
    upstream = torch.randn(want.shape, dtype=torch.float64)
    grads = torch.autograd.grad(out, leaves, upstream.to(dtype).cuda())
    ops.synchronize()
    wanted = torch.autograd.grad(want, exact, upstream)
    for got, right in zip([out, *grads], [want, *wanted], strict=True):
        assert_near(got, right, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_sequences_behind_one_another(dtype):
    q_offsets = torch.tensor([0, *np.cumsum([40, 0, 7, 130])], dtype=torch.int32)
    k_offsets = torch.tensor([0, *np.cumsum([3, 5, 0, 70])], dtype=torch.int32)
    q, kv = torch.randn(177, 2, 24).to(dtype), torch.randn(78, 2, 2, 24).to(dtype)
    ends = {"q_offsets": q_offsets.cuda(), "k_offsets": k_offsets.cuda()}
    out = attention_kvpacked(q.cuda(), kv.cuda(), **ends)
    want = reference.packed(q.double(), *kv.double().unbind(1), q_offsets, k_offsets)
    assert_near(out, want, dtype)


def test_wrong_offsets_are_found():
    qkv = torch.randn(9, 3, 2, 8).cuda()
    attention_qkvpacked(qkv, offsets=torch.tensor([0, 5, 3, 9], dtype=torch.int32).cuda())
    with pytest.raises(ValueError, match="offsets"):
        ops.synchronize()
    attention_qkvpacked(qkv, offsets=torch.tensor([0, 5, 9], dtype=torch.int32).cuda())
    ops.synchronize()


def test_the_same_bits_every_time():
    qkv = torch.randn(4, 150, 3, 4, 64).cuda().requires_grad_()

    def everything():
        out = attention_qkvpacked(qkv)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), qkv)]

    first = everything()
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, everything(), strict=True))
