"""What the patches ops refuse, and whether the message says where and why."""

import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tenfold.ops import patches  # noqa: E402

X = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
Y = X[:, :2].copy()
IDS = np.array([[0, 1], [2, 3]])
RANKS = np.array([[0, 1, 2, 3], [2, 3, 0, 1]])


def bad_ids(sample: int, position: int, value: int) -> np.ndarray:
    ids = IDS.copy()
    ids[sample, position] = value
    return ids


def refused(error: type[Exception], message: str, function: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


BAD = [
    (bad_ids(1, 0, -1), "keep_ids[1, 0] is -1, want 0 <= id < 4 (sample 1, position 0)"),
    (bad_ids(0, 1, 4), "keep_ids[0, 1] is 4, want 0 <= id < 4 (sample 0, position 1)"),
    (bad_ids(1, 1, 2), "keep_ids[1, 1] is 2, the same as at position 0"),
    (bad_ids(0, 0, -(2**62)), f"keep_ids[0, 0] is -{2**62}"),
]


@pytest.mark.parametrize(("ids", "message"), BAD)
@pytest.mark.parametrize("kind", ["numpy", "torch", "torch with gradient"])
def test_bad_ids(ids, message, kind):
    x, y = X, Y
    if kind != "numpy":
        x, y, ids = (torch.tensor(array) for array in (x, y, ids))
    if kind == "torch with gradient":
        x.requires_grad_(), y.requires_grad_()
    refused(ValueError, message, patches.gather_patches, x, ids)
    refused(ValueError, message, patches.restore_patches, y, ids, 4)


def test_the_first_bad_id_is_named():
    ids = np.tile(np.arange(50), (40, 1))
    ids[30, 2], ids[7, 40], ids[7, 41] = 99, -5, -6
    x = np.zeros((40, 60, 1000), np.float32)  # large enough for two threads
    refused(ValueError, "keep_ids[7, 40] is -5", patches.gather_patches, x, ids)
    y = np.zeros((40, 50, 1000), np.float32)
    refused(ValueError, "keep_ids[7, 40] is -5", patches.restore_patches, y, ids, 60)


@pytest.mark.parametrize("kind", ["numpy", "torch with gradient"])
@pytest.mark.parametrize(
    ("value", "message"), [(4, "restore_ids[0, 3] is 4"), (1, "restore_ids[0, 3] is 1, the same")]
)
def test_bad_restore_ids(kind, value, message):
    ranks, y = RANKS.copy(), Y
    ranks[0, 3] = value
    if kind != "numpy":
        ranks, y = torch.tensor(ranks), torch.tensor(y, requires_grad=True)
    refused(ValueError, message, patches.restore_patches, y, restore_ids=ranks)


def test_shapes():
    refused(ValueError, "x has shape (3,), want (batch, tokens, ...)", patches.gather_patches, X[0, 0], IDS)
    refused(ValueError, "keep_ids has shape (2,), want", patches.gather_patches, X, IDS[0])
    refused(ValueError, "keep_ids has 1 samples and x has 2", patches.gather_patches, X, IDS[:1])
    many = np.zeros((2, 5), np.int64)
    refused(ValueError, "keep_ids has 5 ids per sample and there are 4", patches.gather_patches, X, many)
    refused(ValueError, "keep_ids has 2 ids per sample and y has 4 rows", patches.restore_patches, X, IDS, 4)
    refused(ValueError, "y has 2 rows per sample and there are 1 tokens", patches.restore_patches, Y, IDS, 1)
    refused(ValueError, "tokens is -1, want 0 or more", patches.restore_patches, Y, IDS, -1)
    deep = np.zeros((1,) * 9, np.float32)
    refused(ValueError, "x has 9 dimensions, want at most 8", patches.gather_patches, deep, IDS)


def test_types():
    refused(
        TypeError, "keep_ids has type float32, want int32 or int64", patches.gather_patches, X, X[:, :, 0]
    )
    refused(
        TypeError,
        "x is a numpy.ndarray and keep_ids is a torch.Tensor",
        patches.gather_patches,
        X,
        torch.tensor(IDS),
    )
    refused(
        TypeError,
        "x is a torch.Tensor and keep_ids is a numpy.ndarray",
        patches.gather_patches,
        torch.tensor(X),
        IDS,
    )
    refused(
        TypeError,
        "x is a builtins.list, want a numpy array or a torch tensor",
        patches.gather_patches,
        [1],
        IDS,
    )
    refused(TypeError, "keep_ids is a builtins.list", patches.gather_patches, X, IDS.tolist())
    refused(TypeError, "want numbers", patches.gather_patches, X.astype(str), IDS)
    refused(TypeError, "x is big-endian", patches.gather_patches, X.astype(">f4"), IDS)
    refused(
        TypeError,
        "x is a numpy.ma.MaskedArray, want its .data or .filled()",
        patches.gather_patches,
        np.ma.array(X),
        IDS,
    )


class OnDevice:
    """Speaks DLPack as an array of another library would; no such library is needed to be refused."""

    def __dlpack__(self, **_: object) -> object:
        raise AssertionError("must not be asked for data")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)


def test_an_array_on_a_device_is_named():
    refused(TypeError, "OnDevice on cuda:1; this build takes", patches.gather_patches, OnDevice(), IDS)


def test_mask_token():
    refused(
        ValueError, "mask_token has shape (2,), want (3,)", patches.restore_patches, Y, IDS, 4, X[0, 0, :2]
    )
    wide = X[0, 0].astype(np.float64)
    refused(
        TypeError, "mask_token has type float64, want float32 as y", patches.restore_patches, Y, IDS, 4, wide
    )


def test_which_ids():
    refused(ValueError, "want keep_ids and tokens, or restore_ids", patches.restore_patches, Y)
    refused(ValueError, "want keep_ids and tokens, or restore_ids", patches.restore_patches, Y, IDS)
    refused(
        ValueError, "both keep_ids and restore_ids", patches.restore_patches, Y, IDS, 4, restore_ids=RANKS
    )
    refused(
        ValueError,
        "tokens is 5 and restore_ids has 4",
        patches.restore_patches,
        Y,
        None,
        5,
        restore_ids=RANKS,
    )


def test_out():
    gather = patches.gather_patches
    refused(
        ValueError, "out has shape (2, 3, 3), want (2, 2, 3)", gather, X, IDS, np.empty((2, 3, 3), np.float32)
    )
    refused(TypeError, "out has type float64, want float32", gather, X, IDS, np.empty((2, 2, 3)))
    own = X.copy()
    refused(ValueError, "out shares memory with x", gather, own, IDS, own[:, :2])
    torn = np.empty((2, 2, 6), np.float32)[..., ::2]
    refused(ValueError, "out has strides that tear its rows apart", gather, X, IDS, torn)
    same = np.lib.stride_tricks.as_strided(np.empty(12, np.float32), (2, 2, 3), (0, 12, 4))
    refused(ValueError, "let them overlap", gather, X, IDS, same)
    frozen = np.empty((2, 2, 3), np.float32)
    frozen.flags.writeable = False
    refused(ValueError, "out is read-only", gather, X, IDS, frozen)
    refused(TypeError, "out is a torch.Tensor", gather, X, IDS, torch.empty(2, 2, 3))


def test_out_where_a_gradient_is_recorded():
    x, ids = torch.tensor(X, requires_grad=True), torch.tensor(IDS)
    refused(
        ValueError,
        "out is given and a gradient is wanted",
        patches.gather_patches,
        x,
        ids,
        torch.empty(2, 2, 3),
    )
    leaf = torch.empty(2, 2, 3, requires_grad=True)
    refused(
        ValueError, "out is given and a gradient is wanted", patches.gather_patches, x.detach(), ids, leaf
    )
    with torch.no_grad():
        assert patches.gather_patches(x, ids, torch.empty(2, 2, 3)).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 4, 2, 0), "batch is -1"),
        ((1, -4, 2, 0), "tokens is -4"),
        ((1, 4, 5, 0), "keep is 5, want 0 <= keep < 5"),
        ((1, 4, 2, -1), "seed is -1"),
        ((1, 4, 2, 2**64), f"seed is {2**64}"),
        ((1, 4, 2, 0, -1), "offset is -1"),
    ],
)
def test_random_ids_out_of_range(arguments, message):
    refused(ValueError, message, patches.random_keep_ids, *arguments)


def test_random_ids_into_wrong_arrays():
    good = (np.empty((2, 3), np.int64), np.empty((2, 8), np.int64))
    refused(
        ValueError,
        "keep_ids has shape (2, 2)",
        patches.random_keep_ids,
        2,
        8,
        3,
        0,
        out=(good[0][:, :2], good[1]),
    )
    refused(
        TypeError,
        "want one type",
        patches.random_keep_ids,
        2,
        8,
        3,
        0,
        out=(good[0], good[1].astype(np.int32)),
    )
    refused(TypeError, "want a pair", patches.random_keep_ids, 2, 8, 3, 0, out=good[0])
    refused(TypeError, "tokens is 8.0, want a whole number", patches.random_keep_ids, 2, 8.0, 3, 0)
    refused(TypeError, "ordered is 'no', want True", patches.random_keep_ids, 2, 8, 3, 0, ordered="no")


@pytest.mark.parametrize("tokens", [8.0, "8", 2**70])
def test_tokens_that_are_no_number_of_tokens(tokens):
    message = f"tokens is {tokens!r}, want a whole number below 2^63"
    refused(TypeError, message, patches.restore_patches, Y, IDS, tokens)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_restore_ids_of_another_shape(convert):
    y, ranks = convert(Y), convert(RANKS)
    refused(ValueError, "restore_ids has shape (4,)", patches.restore_patches, y, restore_ids=ranks[0])
    refused(
        ValueError, "restore_ids has shape (4,)", patches.restore_patches, y, None, 4, restore_ids=ranks[0]
    )
    refused(TypeError, "restore_ids is a builtins.list", patches.restore_patches, y, restore_ids=[[0, 1]])


def test_masked_masks():
    mask = np.ma.MaskedArray(np.ones((2, 3), bool), mask=[[0, 0, 1]] * 2)
    refused(TypeError, "mask is a numpy.ma.MaskedArray", patches.keep_ids_from_mask, mask)


class Watched(torch.Tensor):
    """A subclass, for which the ops go the way through autograd."""


@pytest.mark.parametrize("kind", [torch.Tensor, Watched])
def test_out_has_to_fit(kind):
    x = torch.tensor(X).as_subclass(kind)
    ids = torch.tensor(IDS)
    for op, args, shape in (
        (patches.gather_patches, (x, ids), (2, 2, 3)),
        (patches.restore_patches, (x[:, :2], ids, 4), (2, 4, 3)),
    ):
        refused(ValueError, "out has shape (1, 2, 4, 3), want", op, *args, out=torch.empty(1, 2, 4, 3))
        refused(TypeError, "out ", op, *args, out=torch.empty(shape, dtype=torch.float64))
        good = torch.empty(shape)
        assert op(*args, out=good) is good
