"""Patches on a real GPU: `pytest -m gpu`. The same kernels run on the emulator in tests/simt."""

import importlib.util
import os

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops import patches
from tenfold.ops.reference import patches as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    pytest.skip(
        f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})",
        allow_module_level=True,
    )
pytestmark = pytest.mark.gpu

SHAPES = [
    (3, 40, 20, 8),
    (64, 256, 64, 1024),
    (5, 33, 33, 7),
    (2, 9, 0, 3),
    (0, 5, 2, 4),
    (1, 70_000, 69_000, 1),
]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
types = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def problem(shape, dtype=torch.float32):
    batch, tokens, keep, width = shape
    x = (torch.randn(batch, tokens, width) * 50).to(dtype).cuda()
    ids, ranks = patches.random_keep_ids(batch, tokens, keep, 1, like=x)
    return x, ids, ranks, (torch.randn(width) * 50).to(dtype).cuda()


@shapes
@types
def test_gather_and_restore_equal_the_reference(shape, dtype):
    x, ids, ranks, fill = problem(shape, dtype)
    kept = patches.gather_patches(x, ids)
    assert torch.equal(kept, reference.gather_patches(x, ids))
    for got in (
        patches.restore_patches(kept, ids, shape[1], fill),
        patches.restore_patches(kept, restore_ids=ranks, mask_token=fill),
    ):
        assert torch.equal(got, reference.restore_patches(kept, ids, shape[1], fill))
    assert torch.equal(
        patches.restore_patches(kept, ids, shape[1]), reference.restore_patches(kept, ids, shape[1])
    )
    ops.synchronize()


@shapes
@pytest.mark.parametrize("ordered", [False, True])
def test_the_same_ids_as_on_the_cpu(shape, ordered):
    batch, tokens, keep, _ = shape
    gpu = patches.random_keep_ids(batch, tokens, keep, 7, 3, ordered, like=torch.empty(0, device="cuda"))
    for mine, want in zip(gpu, patches.random_keep_ids(batch, tokens, keep, 7, 3, ordered), strict=True):
        assert mine.is_cuda
        assert torch.equal(mine.cpu(), torch.from_numpy(want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 256, 64, 1024), (70, 40, 13, 257), (3, 5, 5, 4)])
def test_gradients_equal_the_cpu_bit_for_bit(shape, dtype):
    x, ids, _, fill = problem(shape, dtype)
    grads = []
    for device in ("cuda", "cpu"):
        y = patches.gather_patches(x, ids).to(device).detach().requires_grad_()
        row = fill.detach().to(device, copy=True).requires_grad_()
        out = patches.restore_patches(y, ids.to(device), shape[1], row)
        weight = x.to(device)
        (out * weight).sum().backward()
        grads.append((y.grad.cpu(), row.grad.cpu()))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_strides_and_kept_output():
    x, ids, _, _ = problem((4, 30, 12, 16))
    for view in (x.transpose(1, 2).contiguous().transpose(1, 2), x[:, :, ::2], x.flip(0), x[:, :, 1:14]):
        assert torch.equal(patches.gather_patches(view, ids), reference.gather_patches(view, ids))
    out = torch.empty(4, 12, 16, device="cuda")
    assert patches.gather_patches(x, ids, out) is out
    assert torch.equal(out, reference.gather_patches(x, ids))


def test_runs_on_the_current_stream():
    x, ids, _, _ = problem((64, 256, 64, 1024))
    want = reference.gather_patches(x, ids)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        y = x + 0  # on the side stream, after the sleep: reading it from another stream would be too early
        got = patches.gather_patches(y, ids)
    stream.synchronize()
    assert torch.equal(got, want)


def test_cuda_graph():
    x, ids, _, fill = problem((16, 64, 16, 32))

    def step():
        kept = patches.gather_patches(x, ids)
        return patches.restore_patches(kept, ids, 64, fill)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, reference.restore_patches(reference.gather_patches(x, ids), ids, 64, fill))


@pytest.mark.skipif(os.environ.get("CUDA_LAUNCH_BLOCKING") == "1", reason="every launch is waited for")
def test_a_wrong_id_is_raised_later():
    x, ids, _, _ = problem((3, 40, 20, 8))
    for bad in (-1, 40):
        wrong = ids.clone()
        wrong[1, 5] = bad
        torch.cuda._sleep(50_000_000)  # the kernel has not run when the call returns
        kept = patches.gather_patches(x, wrong)
        with pytest.raises(ValueError, match=r"keep_ids\[1, 5\] of gather_patches"):
            ops.synchronize()
        assert kept[1, 5].isnan().all()
    wrong = ids.clone()
    wrong[2, 7] = wrong[2, 3]
    torch.cuda._sleep(50_000_000)
    patches.gather_patches(x, wrong)
    with pytest.raises(ValueError, match=r"keep_ids\[2, (3|7)\]"):
        ops.synchronize()
    ops.synchronize()


def test_devices_do_not_mix():
    x, ids, _, _ = problem((3, 40, 20, 8))
    with pytest.raises(TypeError, match="keep_ids is on cpu and x is on cuda:0, want one device"):
        patches.gather_patches(x, ids.cpu())


def test_compile():
    x, ids, _, fill = problem((3, 40, 20, 8))
    x.requires_grad_()

    @torch.compile(fullgraph=True)
    def step(x, fill):
        keep_ids, _ = patches.random_keep_ids(3, 40, 20, 1, like=x)
        return patches.restore_patches(patches.gather_patches(x, keep_ids) * 2, keep_ids, 40, fill)

    got = step(x, fill)
    assert torch.equal(got, reference.restore_patches(reference.gather_patches(x, ids) * 2, ids, 40, fill))
    got.sum().backward()
    assert x.grad.sum() == 2 * 3 * 20 * 8


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="cupy is not installed")
def test_cupy():
    import cupy

    x = cupy.random.standard_normal((3, 40, 8)).astype(cupy.float32)
    ids, ranks = patches.random_keep_ids(3, 40, 20, 1, like=x)
    kept = patches.gather_patches(x, ids)
    assert isinstance(kept, cupy.ndarray)
    assert (kept == cupy.take_along_axis(x, ids[..., None], axis=1)).all()
    full = patches.restore_patches(kept, restore_ids=ranks)
    assert (cupy.take_along_axis(full, ids[..., None], axis=1) == kept).all()
    assert float(abs(full).sum()) == pytest.approx(float(abs(kept).sum()), rel=1e-5)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        again = patches.gather_patches(x + 0, ids)
        stream.synchronize()
    assert (again == kept).all()
    mask = ranks < 20
    assert (patches.keep_ids_from_mask(mask) == cupy.sort(ids, axis=1)).all()
