"""The CUDA kernels of patches against the CPU's, bit for bit. Run by test_kernels.py on the emulator."""

import fake_cupy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import _core, ops
from tenfold.ops import patches

fake_cupy.install()

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def on_gpu(array, device=0):
    return fake_cupy.ndarray(array, device)


def same(gpu, cpu):
    assert isinstance(gpu, fake_cupy.ndarray)
    assert gpu.host.dtype == cpu.dtype
    assert gpu.host.shape == cpu.shape
    # Bits, not values: rows may be NaN.
    assert np.ascontiguousarray(gpu.host).tobytes() == np.ascontiguousarray(cpu).tobytes()


def values(shape, dtype, seed=0):
    raw = np.random.default_rng(seed).integers(
        0, 256, size=(*shape, np.dtype(dtype).itemsize), dtype=np.uint8
    )
    return raw.reshape(-1).view(dtype).reshape(shape) if raw.size else np.empty(shape, dtype)


def ids_of(batch, tokens, keep, seed=0, dtype=np.int64):
    ids, ranks = patches.random_keep_ids(batch, tokens, keep, seed)
    return ids.astype(dtype), ranks.astype(dtype)


sizes = st.tuples(
    st.integers(0, 5),
    st.integers(1, 70),
    st.integers(0, 70),
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 33, 64, 300]),
).map(lambda t: (t[0], t[1], min(t[1], t[2]), t[3]))
types = st.sampled_from([np.float32, np.uint16, np.uint8, np.float64])


@FEW
@given(sizes, types, st.sampled_from([np.int32, np.int64]), st.integers(0, 99))
def test_gather_and_restore(size, dtype, id_type, seed):
    batch, tokens, keep, width = size
    x = values((batch, tokens, width), dtype, seed)
    ids, ranks = ids_of(batch, tokens, keep, seed, id_type)
    kept = patches.gather_patches(x, ids)
    same(patches.gather_patches(on_gpu(x), on_gpu(ids)), kept)
    fill = values((width,), dtype, seed + 1)
    same(
        patches.restore_patches(on_gpu(kept), on_gpu(ids), tokens), patches.restore_patches(kept, ids, tokens)
    )
    same(
        patches.restore_patches(on_gpu(kept), on_gpu(ids), tokens, on_gpu(fill)),
        patches.restore_patches(kept, ids, tokens, fill),
    )
    same(
        patches.restore_patches(on_gpu(kept), restore_ids=on_gpu(ranks), mask_token=on_gpu(fill)),
        patches.restore_patches(kept, restore_ids=ranks, mask_token=fill),
    )


def test_rows_of_every_alignment():
    for dtype, width in (
        (np.uint8, 1),
        (np.uint8, 3),
        (np.uint16, 5),
        (np.float32, 3),
        (np.float32, 6),
        (np.float64, 2),
    ):
        wide = values((3, 9, width + 5), dtype)
        for begin in (0, 1, 2):
            x = wide[:, :, begin : begin + width]
            ids, _ = ids_of(3, 9, 4)
            same(patches.gather_patches(on_gpu(x), on_gpu(ids)), patches.gather_patches(x, ids))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.complex64])
def test_any_strides(dtype):
    if dtype is np.complex64:
        dtype = np.float64  # as many bytes; numpy's complex code is not among the fake's
    cube = values((4, 6, 10, 5), dtype)
    ids, _ = ids_of(4, 10, 7)
    for x in (
        cube.transpose(0, 2, 1, 3),
        cube.transpose(0, 2, 3, 1),
        cube[::-1].transpose(0, 2, 1, 3)[:, ::-1],
        cube[..., ::2].transpose(0, 2, 3, 1),
    ):
        same(patches.gather_patches(on_gpu(x), on_gpu(ids)), patches.gather_patches(x, ids))
        kept = x[:, :7]
        row = x[0, 0]
        same(
            patches.restore_patches(on_gpu(kept), on_gpu(ids), 10, on_gpu(row)),
            patches.restore_patches(kept, ids, 10, row),
        )
    strided = np.zeros((4, 14), np.int64)[:, ::2]
    strided[:] = ids
    same(patches.gather_patches(on_gpu(x), on_gpu(strided)), patches.gather_patches(x, ids))


def test_large_rows_and_many_tokens():
    x = values((2, 700, 2050), np.float32)
    ids, ranks = ids_of(2, 700, 300)
    kept = patches.gather_patches(x, ids)
    same(patches.gather_patches(on_gpu(x), on_gpu(ids)), kept)
    same(patches.restore_patches(on_gpu(kept), on_gpu(ids), 700), patches.restore_patches(kept, ids, 700))
    many = values((1, 70_000, 1), np.float32)  # three windows of the check for doubled ids
    ids, ranks = ids_of(1, 70_000, 69_000)
    same(patches.gather_patches(on_gpu(many), on_gpu(ids)), patches.gather_patches(many, ids))
    kept = many[:, :69_000]
    same(
        patches.restore_patches(on_gpu(kept), restore_ids=on_gpu(ranks)),
        patches.restore_patches(kept, restore_ids=ranks),
    )


def test_out():
    x = values((3, 8, 16), np.float32)
    ids, _ = ids_of(3, 8, 5)
    want = patches.gather_patches(x, ids)
    block = np.full((3, 7, 16), np.nan, np.float32)
    out = on_gpu(block[:, 1:6])
    assert patches.gather_patches(on_gpu(x), on_gpu(ids), out) is out
    same(out, want)
    assert np.isnan(block[:, 0]).all()
    assert np.isnan(block[:, 6]).all()


@FEW
@given(
    st.integers(0, 70),
    st.integers(1, 50),
    st.integers(0, 50),
    st.sampled_from([1, 3, 8, 257]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_sum_of_dropped_rows(batch, tokens, keep, width, dtype):
    keep = min(keep, tokens)
    x = torch.randn(
        batch, tokens, width, generator=torch.Generator().manual_seed(batch), dtype=torch.float32
    ).to(dtype)
    ids = torch.from_numpy(ids_of(batch, tokens, keep)[0])
    want = _core.raw_dropped_sum(x, ids)
    bits = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: fake_cupy.BFLOAT16}[dtype]

    def host(tensor):
        return tensor.view(torch.int16).numpy().view(bits) if dtype is torch.bfloat16 else tensor.numpy()

    same(_core.raw_dropped_sum(on_gpu(host(x)), on_gpu(ids.numpy())), host(want))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("batch", "tokens", "keep"),
    [
        (0, 5, 2),
        (1, 1, 1),
        (7, 33, 0),
        (7, 33, 33),
        (5, 300, 77),
        (2, 2500, 2100),
        (2, 8192, 9),
        (2, 8200, 1030),
        (60, 40, 17),  # more samples than blocks: each block takes several
        (30, 8200, 9),
    ],
)
def test_random_ids(batch, tokens, keep, dtype, ordered):
    cpu = np.empty((batch, keep), dtype), np.empty((batch, tokens), dtype)
    gpu = tuple(fake_cupy.empty(array.shape, dtype) for array in cpu)
    for seed, offset in ((3, 0), (2**64 - 1, 2**40)):
        patches.random_keep_ids(batch, tokens, keep, seed, offset, ordered, out=cpu)
        patches.random_keep_ids(batch, tokens, keep, seed, offset, ordered, out=gpu)
        for mine, want in zip(gpu, cpu, strict=True):
            same(mine, want)


def test_random_ids_in_new_memory():
    mine = patches.random_keep_ids(4, 30, 12, 5, like=on_gpu(np.zeros(1)))
    for gpu, cpu in zip(mine, patches.random_keep_ids(4, 30, 12, 5), strict=True):
        same(gpu, cpu)


@pytest.mark.parametrize("bad", [-1, 40, 2**31 - 1])
def test_an_id_out_of_range_is_found_and_touches_nothing(bad):
    x = values((3, 40, 8), np.float32)
    good, _ = ids_of(3, 40, 20)
    ids = good.copy()
    ids[1, 5] = bad
    out = fake_cupy.empty((3, 20, 8), np.float32)
    with pytest.raises(
        ValueError, match=r"keep_ids\[1, 5\] of gather_patches on a GPU .*sample 1, position 5"
    ):
        patches.gather_patches(on_gpu(x), on_gpu(ids), out)
    assert np.isnan(out.host[1, 5]).all()
    want = patches.gather_patches(x, good)
    right = np.ones((3, 20), bool)
    right[1, 5] = False
    assert (out.host.view(np.uint32)[right] == want.view(np.uint32)[right]).all()
    ops.synchronize()  # said once
    with pytest.raises(ValueError, match=r"keep_ids\[1, 5\] of restore_patches"):
        patches.restore_patches(out, on_gpu(ids), 40)
    with pytest.raises(ValueError, match=r"keep_ids\[1, 5\] of the gradient"):
        _core.raw_dropped_sum(on_gpu(x), on_gpu(ids))


def test_a_doubled_id_is_found():
    x = values((3, 40, 8), np.float32)
    ids, ranks = ids_of(3, 40, 20)
    ids[2, 7] = ids[2, 3]
    place = r"\[2, (3|7)\]"
    with pytest.raises(ValueError, match="keep_ids" + place):
        patches.gather_patches(on_gpu(x), on_gpu(ids))
    with pytest.raises(ValueError, match="keep_ids" + place):
        patches.restore_patches(on_gpu(x[:, :20]), on_gpu(ids), 40)
    with pytest.raises(ValueError, match="keep_ids" + place):
        _core.raw_dropped_sum(on_gpu(x), on_gpu(ids))
    ranks[0, 9] = ranks[0, 30]
    with pytest.raises(ValueError, match=r"restore_ids\[0, (9|30)\]"):
        patches.restore_patches(on_gpu(x[:, :20]), restore_ids=on_gpu(ranks))


def test_ids_from_ranks():
    for batch in (3, 60):  # fewer and more samples than blocks
        _, ranks = ids_of(batch, 40, 20)
        cpu, gpu = np.empty((batch, 20), np.int64), fake_cupy.empty((batch, 20), np.int64)
        _core.keep_ids_from_ranks(ranks, cpu)
        _core.keep_ids_from_ranks(on_gpu(ranks), gpu)
        same(gpu, cpu)
    lost = ranks[1, 3]
    ranks[1, 3] = 40
    gpu = fake_cupy.empty((60, 20), np.int64)
    with pytest.raises(ValueError, match=r"restore_ids\[1, 3\]"):
        _core.keep_ids_from_ranks(on_gpu(ranks), gpu)
    if lost < 20:  # no id is left undefined
        assert gpu.host[1, lost] == -1


def test_a_rank_twice_leaves_no_id_undefined():
    # Two threads write the id of that rank: whichever comes last, so ThreadSanitizer does not run this.
    _, ranks = ids_of(3, 40, 20)
    ranks[1, 3] = ranks[1, 4]
    gpu = fake_cupy.empty((3, 20), np.int64)
    with pytest.raises(ValueError, match=r"restore_ids\[1, (3|4)\]"):
        _core.keep_ids_from_ranks(on_gpu(ranks), gpu)
    assert gpu.host.min() >= -1
    assert gpu.host.max() < 40


@pytest.mark.parametrize("ordered", [False, True])
def test_random_ids_of_few(ordered):
    gpu = patches.random_keep_ids(3, 33, 9, 5, ordered=ordered, like=on_gpu(np.zeros(1)))
    for mine, want in zip(gpu, patches.random_keep_ids(3, 33, 9, 5, ordered=ordered), strict=True):
        same(mine, want)


def test_ids_are_made_on_the_device_of_the_example():
    ids, ranks = patches.random_keep_ids(3, 33, 9, 5, like=on_gpu(np.zeros(1), 1))
    assert ids.device_id == ranks.device_id == 1


def test_ids_that_are_not_aligned_are_refused():
    block = np.zeros(3 * 20 * 8 + 1, np.uint8)
    ids = block[1:].view(np.int64).reshape(3, 20)
    ids[:] = ids_of(3, 40, 20)[0]
    x = values((3, 40, 8), np.float32)
    same(patches.gather_patches(on_gpu(x), on_gpu(ids.copy())), patches.gather_patches(x, ids))
    with pytest.raises(ValueError, match="keep_ids is not aligned to its elements"):
        patches.gather_patches(on_gpu(x), on_gpu(ids))


def test_mistakes_are_found_before_anything_runs():
    x, ids = values((3, 40, 8), np.float32), ids_of(3, 40, 20)[0]
    with pytest.raises(TypeError, match="keep_ids is on cuda:1 and x is on cuda:0, want one device"):
        patches.gather_patches(on_gpu(x), on_gpu(ids, 1))
    with pytest.raises(TypeError, match=r"cupy.ndarray.*numpy.ndarray, want arrays of one library"):
        patches.gather_patches(on_gpu(x), ids)
    with pytest.raises(ValueError, match="want the same number"):
        patches.gather_patches(on_gpu(x), on_gpu(ids[:2]))
    with pytest.raises(ValueError, match="out shares memory with x"):
        patches.gather_patches(on_gpu(x), on_gpu(ids), on_gpu(x[:, :20]))
    with pytest.raises(TypeError, match="out is on cuda:1 and the input is on cuda:0"):
        patches.gather_patches(on_gpu(x), on_gpu(ids), on_gpu(np.empty((3, 20, 8), np.float32), 1))


def test_streams():
    x, ids = on_gpu(values((3, 40, 8), np.float32)), on_gpu(ids_of(3, 40, 20)[0])
    # 0 and 1 are the legacy default stream, 2 the one per thread; DLPack has no 0.
    for pointer, wanted in ((0, 1), (1, 1), (2, 2), (0x5000, 0x5000)):
        fake_cupy.set_stream(pointer)
        fake_cupy.requested.clear()
        patches.gather_patches(x, ids)
        assert set(fake_cupy.requested) == {wanted}
    fake_cupy.set_stream(0)


def test_results_come_from_the_device_of_the_arguments():
    x, ids = values((3, 40, 8), np.float32), ids_of(3, 40, 20)[0]
    out = patches.gather_patches(on_gpu(x, 1), on_gpu(ids, 1))
    assert out.device_id == 1
    assert fake_cupy._device == 0
    same(out, patches.gather_patches(x, ids))
