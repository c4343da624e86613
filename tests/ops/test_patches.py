"""The patches ops against their plain-torch twins, on random shapes, strides and types."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tenfold.ops import patches  # noqa: E402
from tenfold.ops.reference import patches as reference  # noqa: E402

TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int8, torch.complex64, torch.bool]
SETTINGS = settings(max_examples=150, deadline=None)


@st.composite
def problems(draw):
    """x (B, N, ...) of some type and strides, keep_ids (B, K), restore_ids (B, N)."""
    batch, tokens = draw(st.integers(0, 5)), draw(st.integers(0, 9))
    keep = draw(st.integers(0, tokens))
    row = tuple(draw(st.lists(st.integers(0, 70), max_size=2)))
    seed = draw(st.integers(0, 2**32))
    x = torch.randn(batch, tokens, *row, generator=torch.Generator().manual_seed(seed)) * 100
    x = strided(x.to(draw(st.sampled_from(TYPES))), draw(st.integers(0, 4)))
    ids, ranks = patches.random_keep_ids(batch, tokens, keep, seed, like=x)
    ids_type = draw(st.sampled_from([torch.int32, torch.int64]))
    return x, strided(ids.to(ids_type), draw(st.integers(0, 4))), ranks.to(ids_type)


def strided(x, kind):
    """The same values in another memory layout."""
    if kind == 1:  # every second element of a wider array
        wide = x.new_zeros(*x.shape[:-1], x.shape[-1] * 2)
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == 2:  # the batch is innermost
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if kind == 3:  # tokens of a longer sequence
        return torch.cat([x, x], dim=1)[:, : x.shape[1]]
    if kind == 4:  # as a flattened convolution's output: rows are the slow dimension
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x


def poisoned(shape, dtype):
    """Memory in which a row that the kernel forgets is seen: NaN, or 77."""
    return torch.full(shape, float("nan") if dtype.is_floating_point or dtype.is_complex else 77).to(dtype)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def as_numpy(*arrays):
    return [array.numpy() for array in arrays]


@SETTINGS
@given(problems())
def test_gather(problem):
    x, ids, _ = problem
    want = reference.gather_patches(x, ids)
    assert same_bits(patches.gather_patches(x, ids), want)
    out = poisoned(want.shape, want.dtype)
    assert patches.gather_patches(x, ids, out=out) is out
    assert same_bits(out, want)


@SETTINGS
@given(problems(), st.booleans())
def test_restore(problem, with_mask_token):
    x, ids, ranks = problem
    y = strided(reference.gather_patches(x, ids), 3)
    mask_token = (
        torch.arange(x[0, 0].numel()).view(x.shape[2:]).to(x.dtype) if with_mask_token and x.numel() else None
    )
    want = reference.restore_patches(y, ids, x.shape[1], mask_token)
    assert same_bits(reference.restore_patches_from_ranks(y, ranks, mask_token), want)
    out = poisoned(want.shape, want.dtype)
    assert patches.restore_patches(y, ids, x.shape[1], mask_token, out=out) is out
    assert same_bits(out, want)
    assert same_bits(patches.restore_patches(y, ids, x.shape[1], mask_token), want)
    out = poisoned(want.shape, want.dtype)
    patches.restore_patches(y, mask_token=mask_token, restore_ids=ranks, out=out)
    assert same_bits(out, want)


@SETTINGS
@given(problems())
def test_numpy_gives_the_same(problem):
    x, ids, ranks = problem
    if x.dtype == torch.bfloat16:
        x = x.view(torch.int16)  # numpy has no bfloat16; rows are bytes
    kept = patches.gather_patches(*as_numpy(x, ids))
    assert type(kept) is np.ndarray
    np.testing.assert_array_equal(kept, reference.gather_patches(x, ids).numpy())
    full = patches.restore_patches(kept, ids.numpy(), x.shape[1])
    np.testing.assert_array_equal(full, patches.restore_patches(kept, restore_ids=ranks.numpy()))
    np.testing.assert_array_equal(
        full, reference.restore_patches(torch.from_numpy(kept), ids, x.shape[1]).numpy()
    )


@pytest.mark.parametrize("shape", [(2, 40, 1024), (3, 33, 517), (1, 70, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_streamed_stores(shape, dtype, monkeypatch):
    # Outputs beyond half of the last-level cache go past it: make one of just that size.
    from tenfold import _core

    batch, tokens, width = shape
    row = width * dtype.itemsize
    batch = _core.last_level_cache() // (2 * (tokens - 1) * row) + 1
    x = torch.randint(-100, 100, (batch, tokens, width), dtype=torch.int8).to(dtype)
    ids, _ = patches.random_keep_ids(batch, tokens, tokens - 1, 1, like=x)
    out = poisoned((batch, tokens - 1, width), dtype)
    assert same_bits(patches.gather_patches(x, ids, out=out), reference.gather_patches(x, ids))
    fill = torch.arange(width).to(dtype)
    for mask_token in (None, fill):
        full = patches.restore_patches(out, ids, tokens, mask_token, out=poisoned(x.shape, dtype))
        assert same_bits(full, reference.restore_patches(out, ids, tokens, mask_token))


def test_out_may_be_part_of_a_larger_array():
    x = torch.randn(3, 8, 5)
    ids, _ = patches.random_keep_ids(3, 8, 4, 0, like=x)
    large = torch.full((3, 9, 5), float("nan"))
    patches.gather_patches(x, ids, out=large[:, 2:6])
    assert same_bits(large[:, 2:6].contiguous(), reference.gather_patches(x, ids))
    assert large[:, :2].isnan().all()
    assert large[:, 6:].isnan().all()


def test_mask_token_of_any_strides():
    y, ids = torch.randn(2, 2, 3, 4), torch.tensor([[0, 2], [1, 0]])
    mask_token = torch.randn(4, 3).T
    want = reference.restore_patches(y, ids, 3, mask_token)
    assert same_bits(patches.restore_patches(y, ids, 3, mask_token), want)


def test_numpy_subclasses_and_read_only_inputs(tmp_path):
    x = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(2, 4, 3))
    x[:] = np.random.default_rng(0).random((2, 4, 3))
    ids = np.array([[1, 2], [3, 0]])
    ids.flags.writeable = False
    np.testing.assert_array_equal(patches.gather_patches(x, ids), x[np.arange(2)[:, None], ids])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_keep_ids_from_mask(kind):
    mask = np.array([[True, False, True, False], [False, False, True, True]])
    mask = mask if kind == "numpy" else torch.from_numpy(mask)
    ids = patches.keep_ids_from_mask(mask)
    assert type(ids) is type(mask)
    assert ids.tolist() == [[0, 2], [2, 3]]
    assert patches.keep_ids_from_mask(~mask, keep=2).tolist() == [[1, 3], [0, 1]]
    assert tuple(patches.keep_ids_from_mask(mask[:0], keep=2).shape) == (0, 2)
    with pytest.raises(ValueError, match="mask keeps 2 tokens of sample 0, want 3"):
        patches.keep_ids_from_mask(mask, keep=3)
    mask[1, 0] = True
    with pytest.raises(ValueError, match="mask keeps 3 tokens of sample 1, want 2 in every sample"):
        patches.keep_ids_from_mask(mask)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_keep_ids_from_mask_refuses_other_arrays(kind):
    make = np.array if kind == "numpy" else torch.tensor
    with pytest.raises(TypeError, match="want bool"):
        patches.keep_ids_from_mask(make([[0, 1]]))
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), want \(batch, tokens\)"):
        patches.keep_ids_from_mask(make([True, False]))


def test_unaligned_numpy_arrays():
    rng = np.random.default_rng(0)
    x = np.frombuffer(rng.bytes(1 + 2 * 4 * 33 * 8), np.float64, offset=1).reshape(2, 4, 33)
    ids = np.frombuffer(b"." + np.array([[3, 1], [0, 2]]).tobytes(), np.int64, offset=1).reshape(2, 2)
    assert not x.flags.aligned
    assert not ids.flags.aligned
    kept = patches.gather_patches(x, ids)
    np.testing.assert_array_equal(kept.view(np.int64), x[np.arange(2)[:, None], ids].view(np.int64))
    full = patches.restore_patches(kept, ids, 4)
    np.testing.assert_array_equal(full[np.arange(2)[:, None], ids].view(np.int64), kept.view(np.int64))
