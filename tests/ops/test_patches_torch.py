"""The torch side of the patches ops: gradients, transforms, compilation, and what autograd must notice."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402

from tenfold.ops import patches  # noqa: E402
from tenfold.ops.reference import patches as reference  # noqa: E402

B, N, K, D = 3, 8, 3, 5


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, N, D, generator=generator, dtype=torch.float64)
    mask_token = torch.randn(D, generator=generator, dtype=torch.float64)
    ids, ranks = patches.random_keep_ids(B, N, K, 1, like=x)
    return x, ids, ranks, mask_token


def wanting_gradient(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def there_and_back(x, ids, mask_token, ops=patches):
    return ops.restore_patches(ops.gather_patches(x, ids).sin(), ids, x.shape[1], mask_token)


# ---- gradients ----


def test_gradcheck_of_gather(problem):
    x, ids, _, _ = problem
    (x,) = wanting_gradient(x)
    assert gradcheck(lambda x: patches.gather_patches(x, ids), x, check_batched_grad=True)
    assert gradgradcheck(lambda x: patches.gather_patches(x, ids).sin(), x)


@pytest.mark.parametrize("by", ["keep_ids", "restore_ids"])
def test_gradcheck_of_restore(problem, by):
    x, ids, ranks, mask_token = problem
    y, mask_token = wanting_gradient(x[:, :K], mask_token)

    def restore(y, mask_token):
        if by == "keep_ids":
            return patches.restore_patches(y, ids, N, mask_token)
        return patches.restore_patches(y, mask_token=mask_token, restore_ids=ranks)

    assert gradcheck(restore, (y, mask_token), check_batched_grad=True)
    assert gradgradcheck(lambda *args: restore(*args).sin(), (y, mask_token))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 40, 96), (1, 300, 7), (130, 3, 2, 3), (2, 2, 0)])
def test_gradients_equal_the_reference(dtype, shape):
    x = torch.randn(*shape).to(dtype)
    ids, _ = patches.random_keep_ids(shape[0], shape[1], shape[1] // 2, 3, like=x)
    got, want = wanting_gradient(x, x)
    got_mask, want_mask = wanting_gradient(*[torch.randn(shape[2:]).to(dtype)] * 2)
    weight = torch.randn(*shape).to(dtype)
    (there_and_back(got, ids, got_mask) * weight).sum().backward()
    (there_and_back(want, ids, want_mask, reference) * weight).sum().backward()
    assert torch.equal(got.grad, want.grad)
    # Summed in float32 and rounded once: half a unit in the last place of the type, and float32's own error.
    exact = reference.dropped_sum(weight, ids)
    bound = exact.abs() * torch.finfo(dtype).eps + 1e-4 * (dtype == torch.float32) + 1e-3
    assert ((got_mask.grad.double() - exact).abs() <= bound).all()


def test_only_the_wanted_gradients_are_made(problem):
    x, ids, _, mask_token = problem
    (mask_token,) = wanting_gradient(mask_token)
    patches.restore_patches(x[:, :K], ids, N, mask_token).sum().backward()
    torch.testing.assert_close(mask_token.grad, torch.full((D,), float(B * (N - K)), dtype=torch.float64))


def test_gradient_of_any_layout(problem):
    x, ids, _, _ = problem
    (x,) = wanting_gradient(x)
    patches.gather_patches(x, ids).sum().backward()  # an expanded gradient
    assert x.grad.sum() == B * K * D


def test_no_gradient_for_integers(problem):
    x, ids, _, _ = problem
    assert not patches.gather_patches(x.int(), ids).requires_grad


# ---- torch.func ----


def test_func_grad(problem):
    x, ids, ranks, mask_token = problem
    got = torch.func.grad(lambda m: patches.restore_patches(x[:, :K], None, N, m, restore_ids=ranks).sum())(
        mask_token
    )
    assert torch.equal(got, torch.full_like(got, B * (N - K)))
    for argument in (0, 1):
        got = torch.func.grad(lambda x, m: there_and_back(x, ids, m).cos().sum(), argument)(x, mask_token)
        want = torch.func.grad(lambda x, m: there_and_back(x, ids, m, reference).cos().sum(), argument)(
            x, mask_token
        )
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("x_dim", [0, 2, None])
@pytest.mark.parametrize("ids_dim", [0, 1, None])
@pytest.mark.parametrize("mask_dim", [0, 1, None])
def test_vmap(x_dim, ids_dim, mask_dim):
    if x_dim is None and ids_dim is None and mask_dim is None:
        pytest.skip("nothing to map over")
    x, mask_token = torch.randn(4, B, N, D), torch.randn(4, D)
    ids = patches.random_keep_ids(4 * B, N, K, 1, like=x)[0].view(4, B, K)
    tensors = (x, ids, mask_token)
    dims = (x_dim, ids_dim, mask_dim)
    args = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip(tensors, dims, strict=True)]
    got = torch.vmap(there_and_back, in_dims=dims)(*args)
    want = [
        there_and_back(
            *[a if dim is None else a.select(dim, i) for a, dim in zip(args, dims, strict=True)], reference
        )
        for i in range(4)
    ]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=0)


def test_vmap_of_restore_ids(problem):
    x, ids, ranks, mask_token = problem
    got = torch.vmap(
        lambda y, r: patches.restore_patches(y[None], mask_token=mask_token, restore_ids=r[None])[0]
    )(x[:, :K], ranks)
    torch.testing.assert_close(got, reference.restore_patches(x[:, :K], ids, N, mask_token))


def test_vmap_of_grad(problem):
    x, ids, _, mask_token = problem

    def loss(x, ids, mask_token, ops):
        return there_and_back(x[None], ids[None], mask_token, ops).cos().sum()

    for argument in (0, 2):
        got, want = (
            torch.vmap(torch.func.grad(lambda *a, ops=ops: loss(*a, ops), argument), (0, 0, None))(
                x, ids, mask_token
            )
            for ops in (patches, reference)
        )
        torch.testing.assert_close(got, want)


# Forward-mode differentiation is not there: it must say so, for a silent zero is worse.


def test_jvp_raises(problem):
    x, ids, _, mask_token = problem
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: patches.gather_patches(x, ids), (x,), (x,))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda m: patches.restore_patches(x[:, :K], ids, N, m), (mask_token,), (mask_token,))


def test_dual_tensors_raise(problem):
    x, ids, _, _ = problem
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises((NotImplementedError, RuntimeError)):
            patches.gather_patches(dual, ids)
        with pytest.raises((NotImplementedError, RuntimeError)):
            patches.gather_patches(dual, ids, out=torch.empty(B, K, D, dtype=x.dtype))
        assert torch.equal(patches.gather_patches(x, ids), reference.gather_patches(x, ids))


def test_the_bare_operators_never_lose_a_gradient(problem):
    x, ids, _, _ = problem
    (wanting,) = wanting_gradient(x)
    with pytest.raises(NotImplementedError, match=r"Call tenfold\.ops"):
        torch.ops.tenfold.gather_patches(wanting, ids)
    with pytest.raises(NotImplementedError, match=r"Call tenfold\.ops"):
        torch.ops.tenfold.restore_patches(x[:, :K], ids, N, wanting[0, 0])


# ---- modes, subclasses, memory ----


def test_autocast_keeps_the_type_and_casts_the_mask_token(problem):
    x, ids, _, mask_token = problem
    y, mask_token = x[:, :K].bfloat16(), mask_token.float()
    (mask_token,) = wanting_gradient(mask_token)
    with torch.autocast("cpu", torch.bfloat16):
        assert patches.gather_patches(x.float(), ids).dtype == torch.float32
        out = patches.restore_patches(y, ids, N, mask_token)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert mask_token.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(patches.restore_patches(y, ids, N, mask_token), out)
    with pytest.raises(TypeError, match="mask_token has type float32, want bfloat16"):
        patches.restore_patches(y, ids, N, mask_token.detach())


def test_parameters_and_inference_mode(problem):
    x, ids, _, _ = problem
    parameter = torch.nn.Parameter(x)
    assert patches.gather_patches(parameter, ids).grad_fn is not None
    with torch.no_grad():
        assert patches.gather_patches(parameter, ids).grad_fn is None
    with torch.inference_mode():
        out = patches.gather_patches(parameter, ids)
        patches.gather_patches(parameter, ids, out=out)
    assert torch.equal(out, reference.gather_patches(x, ids))


def test_lazily_conjugated_and_negated_tensors(problem):
    _, ids, _, _ = problem
    x = torch.randn(B, N, D, dtype=torch.complex64).conj()
    assert x.is_conj()
    assert x.imag.is_neg()
    for lazy in (x, x.imag, x.imag[:, :, :1]):
        want = reference.gather_patches(lazy, ids)
        assert torch.equal(patches.gather_patches(lazy, ids), want)
        out = torch.zeros(2, *want.shape, dtype=torch.complex64).conj().imag[0] if lazy.is_neg() else None
        assert torch.equal(patches.gather_patches(lazy, ids, out=out), want)


def test_dispatch_modes_see_the_op(problem):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, ids, _, _ = problem
    with Watch():
        patches.gather_patches(x, ids)
    assert "tenfold.gather_patches.default" in seen


def test_autograd_notices_that_out_was_overwritten(problem):
    x, ids, _, _ = problem
    (weight,) = wanting_gradient(x[:, :K])
    out = patches.gather_patches(x, ids, out=torch.empty(B, K, D, dtype=x.dtype))
    loss = (weight * out).sum()
    patches.gather_patches(x + 1, ids, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_notices_that_ids_were_overwritten(problem):
    x, ids, _, _ = problem
    (x,) = wanting_gradient(x)
    loss = patches.gather_patches(x, ids).sum()
    patches.random_keep_ids(B, N, K, 9, out=(ids, torch.empty(B, N, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tensor_on_another_device_is_named(problem):
    x, ids, _, _ = problem
    assert patches.gather_patches(x.to("meta"), ids.to("meta")).shape == (B, K, D)


# ---- operators and compilation ----


def test_opcheck(problem):
    x, ids, ranks, mask_token = problem
    operators = torch.ops.tenfold
    for operator, args in (
        (operators.gather_patches, (x, ids)),
        (operators.restore_patches, (x[:, :K], ids, N, mask_token)),
        (operators.restore_patches, (x[:, :K], ids, N, None)),
        (operators.dropped_sum, (x, ids)),
        (operators.keep_ids_from_ranks, (ranks, K)),
        (operators.random_keep_ids, (B, N, K, 1, 0, False, torch.device("cpu"))),
    ):
        torch.library.opcheck(operator.default, args)


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_with_gradients(problem, dynamic):
    x, ids, ranks, mask_token = problem
    step = compiled(
        lambda x, r, m: patches.restore_patches(
            patches.gather_patches(x, ids).sin(), mask_token=m, restore_ids=r
        ),
        dynamic=dynamic,
    )
    got, want = wanting_gradient(x, x)
    got_mask, want_mask = wanting_gradient(mask_token, mask_token)
    out = step(got, ranks, got_mask)
    torch.testing.assert_close(out, there_and_back(want, ids, want_mask))
    out.cos().sum().backward()
    there_and_back(want, ids, want_mask, reference).cos().sum().backward()
    torch.testing.assert_close(got.grad, want.grad)
    torch.testing.assert_close(got_mask.grad, want_mask.grad)


def test_compile_checks_ids(problem):
    x, ids, _, _ = problem
    gather = compiled(patches.gather_patches)
    gather(x, ids)
    with pytest.raises(ValueError, match=r"keep_ids\[0, 0\] is 8"):
        gather(x, ids.masked_fill(torch.tensor([[True] + [False] * (K - 1)]), 8))


def test_compile_with_out_and_random_ids(problem):
    x, _, _, _ = problem

    def step(seed, out):
        ids, _ = patches.random_keep_ids(B, N, K, seed, like=out)
        return patches.gather_patches(x, ids, out=out)

    out = torch.full((B, K, D), float("nan"), dtype=x.dtype)
    for seed in (1, 2):
        want = reference.gather_patches(x, patches.random_keep_ids(B, N, K, seed, like=x)[0])
        assert torch.equal(compiled(step)(seed, out), want)
        assert torch.equal(out, want)


def test_compile_of_vmap(problem):
    x, ids, _, _ = problem
    got = compiled(lambda x: torch.vmap(patches.gather_patches)(x[:, None], ids[:, None]))(x)
    assert torch.equal(got[:, 0], reference.gather_patches(x, ids))


def test_transforms_inside_compile_are_right_or_raise(problem):
    x, ids, _, _ = problem

    def gather_sine(x):
        return patches.gather_patches(x, ids).sin()

    with pytest.raises(Exception, match="records no gradient here"):
        compiled(lambda x: torch.func.grad(lambda x: gather_sine(x).sum())(x))(x)
    with pytest.raises(Exception, match="records no gradient here"):
        compiled(lambda x: torch.func.jvp(gather_sine, (x,), (x,)))(x)


def test_first_call_under_compile_with_torch_imported_last():
    code = (
        "from tenfold.ops import patches; import torch;"
        "x = torch.ones(1, 4, 2); i = torch.tensor([[3, 1]]);"
        "f = torch.compile(patches.gather_patches, fullgraph=True, backend='eager');"
        "print(f(x, i).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "4.0", done.stderr


@pytest.mark.slow
def test_compile_with_inductor(problem):
    x, ids, _, mask_token = problem
    step = torch.compile(there_and_back, fullgraph=True)
    (got,) = wanting_gradient(x)
    step(got, ids, mask_token).sum().backward()
    (want,) = wanting_gradient(x)
    there_and_back(want, ids, mask_token, reference).sum().backward()
    torch.testing.assert_close(got.grad, want.grad)


def test_numpy_users_do_not_import_torch():
    code = (
        "import sys, numpy as np; from tenfold.ops import patches;"
        "ids, ranks = patches.random_keep_ids(2, 4, 2, 0); x = np.ones((2, 4, 3));"
        "patches.restore_patches(patches.gather_patches(x, ids), restore_ids=ranks);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_mask_is_refused_under_compile_too():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    with pytest.raises(Exception, match="keeps 3 tokens of sample 1, want 2"):
        torch.compile(lambda m: patches.keep_ids_from_mask(m, keep=2), fullgraph=True)(mask)
    with pytest.raises(Exception, match="want the number of kept tokens"):
        torch.compile(lambda m: patches.keep_ids_from_mask(m), fullgraph=True)(mask)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("by", ["keep_ids", "restore_ids"])
def test_the_mask_token_of_mae_is_taken_as_it_is(library, by):
    generator = torch.Generator().manual_seed(3)
    y, token = (torch.randn(*shape, generator=generator) for shape in ((3, 2, 4), (1, 1, 4)))
    keep_ids, restore_ids = patches.random_keep_ids(3, 5, 2, seed=0, like=y)
    if library == "numpy":
        y, token, keep_ids, restore_ids = (t.numpy() for t in (y, token, keep_ids, restore_ids))
    ids = {"keep_ids": keep_ids, "tokens": 5} if by == "keep_ids" else {"restore_ids": restore_ids}
    wanted = patches.restore_patches(y, mask_token=token[0, 0], **ids)
    given = patches.restore_patches(y, mask_token=token, **ids)
    assert (given == wanted).all()
    if library == "torch":
        token.requires_grad_()
        patches.restore_patches(y, mask_token=token, **ids).sum().backward()
        assert torch.equal(token.grad, torch.full((1, 1, 4), 9.0))  # 3 samples with 3 dropped tokens
    two = torch.ones(1, 2, 4)
    with pytest.raises(ValueError, match="mask_token has shape"):
        patches.restore_patches(y, mask_token=two.numpy() if library == "numpy" else two, **ids)
