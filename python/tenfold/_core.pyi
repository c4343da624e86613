"""
Compiled kernels of tenfold. Use tenfold.ops instead: it documents and checks.
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['activate', 'activate_backward', 'adaln_backward', 'adaln_forward', 'atom_logits', 'atom_logits_backward', 'attention_backward', 'attention_forward', 'build_type', 'built_with_cuda', 'compiler', 'cuda_architectures', 'cuda_device_count', 'cuda_devices', 'cuda_reason', 'experts_backward', 'experts_forward', 'fuzzy_quantify', 'fuzzy_quantify_backward', 'fuzzy_segments', 'fuzzy_segments_backward', 'gather_patches', 'is_plain', 'isa', 'isas_compiled', 'isas_supported', 'keep_freed_memory', 'keep_ids_from_ranks', 'last_level_cache', 'logmatmul', 'logmatmul_backward', 'mixing_backward', 'mixing_forward', 'moe_combine', 'moe_combine_backward', 'moe_dispatch', 'norm_rows', 'norm_rows_backward', 'openmp_runtime', 'pair_mlp', 'pair_mlp_backward', 'philox4x32', 'random_keep_ids', 'raw_dropped_sum', 'raw_gather_patches', 'raw_restore_patches', 'register_torch', 'restore_patches', 'restore_patches_from_ranks', 'route_backward', 'route_expert_choice', 'route_ids', 'route_topk', 'sanitizers', 'synchronize', 'threads']
def activate(x: typing.Any, out: typing.Any, activation: str, gated: bool) -> None:
    """
    out = f(x), or, where gated, f of the first half of each row times the second.
    """
def activate_backward(grad: typing.Any, x: typing.Any, x_grad: typing.Any, activated: typing.Any, activation: str, gated: bool) -> None:
    """
    x_grad, which may be x or grad; activated, which may be grad or None, receives the values.
    """
def adaln_backward(x: typing.Any, statistics: typing.Any, branch: typing.Any, gate: typing.Any, scale: typing.Any, weight: typing.Any, bias: typing.Any, residual_grad: typing.Any, h_grad: typing.Any, grads: typing.Any) -> None:
    """
    Fills the gradients (x, branch, gate, shift, scale, weight, bias); None for what is not wanted.
    """
def adaln_forward(x: typing.Any, branch: typing.Any, gate: typing.Any, shift: typing.Any, scale: typing.Any, weight: typing.Any, bias: typing.Any, eps: typing.SupportsFloat | typing.SupportsIndex, residual: typing.Any, h: typing.Any, statistics: typing.Any) -> None:
    """
    residual = x + gate branch, h = its modulated normalisation; None for what is absent.
    """
def atom_logits(z: typing.Any, softmax: bool, index: typing.Any, log: typing.Any, nlog: typing.Any) -> None:
    """
    log P and log(1 - P) from logits.
    """
def atom_logits_backward(log_grad: typing.Any, nlog_grad: typing.Any, z: typing.Any, softmax: bool, index: typing.Any, z_grad: typing.Any) -> None:
    """
    The gradient of the logits.
    """
def attention_backward(q: typing.Any, k: typing.Any, v: typing.Any, q_offsets: typing.Any, k_offsets: typing.Any, key_mask: typing.Any, scale: typing.SupportsFloat | typing.SupportsIndex, statistics: typing.Any, out_grad: typing.Any, grads: typing.Any) -> None:
    """
    Fills the gradients (q, k, v) of attention_forward.
    """
def attention_forward(q: typing.Any, k: typing.Any, v: typing.Any, q_offsets: typing.Any, k_offsets: typing.Any, key_mask: typing.Any, scale: typing.SupportsFloat | typing.SupportsIndex, out: typing.Any, statistics: typing.Any) -> None:
    """
    softmax(scale q k^T) v; offsets and mask may be None.
    """
def build_type() -> str:
    """
    CMake build type.
    """
def built_with_cuda() -> bool:
    """
    Whether this build has CUDA kernels.
    """
def compiler() -> str:
    """
    Compiler that made this module.
    """
def cuda_architectures() -> str:
    """
    What the CUDA kernels are compiled for, or ''.
    """
def cuda_device_count() -> int:
    """
    CUDA devices that the driver reports.
    """
def cuda_devices() -> list[tuple[str, int, int]]:
    """
    Name and compute capability of each CUDA device.
    """
def cuda_reason() -> str:
    """
    Why no CUDA device can be used, or ''.
    """
def experts_backward(x: typing.Any, token_ids: typing.Any, offsets: typing.Any, w_in: typing.Any, w_out: typing.Any, b_in: typing.Any, b_out: typing.Any, activation: str, gated: bool, hidden: typing.Any, y_grad: typing.Any, grads: typing.Any) -> None:
    """
    Fills the gradients (rows of x, w_in, w_out, b_in, b_out).
    """
def experts_forward(x: typing.Any, token_ids: typing.Any, offsets: typing.Any, w_in: typing.Any, w_out: typing.Any, b_in: typing.Any, b_out: typing.Any, activation: str, gated: bool, y: typing.Any, hidden: typing.Any) -> None:
    """
    Each expert's network on its rows; biases and hidden may be None.
    """
def fuzzy_quantify(operands: tuple[typing.Any, ...], guards: tuple[typing.Any, ...], axes: str, kept: str, formula: str, quantifier: str, relation: str, numbers: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], out: typing.Any, state: typing.Any) -> None:
    """
    The quantifier of a formula over axes; state, where given, is kept for the backward pass.
    """
def fuzzy_quantify_backward(grad: typing.Any, state: typing.Any, operands: tuple[typing.Any, ...], guards: tuple[typing.Any, ...], axes: str, kept: str, formula: str, quantifier: str, relation: str, numbers: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], grads: tuple[typing.Any, ...], add_to: collections.abc.Sequence[bool]) -> None:
    """
    Gradients of the operands, None where not wanted; added to what is there where add_to says so.
    """
def fuzzy_segments(values: typing.Any, row_ptr: typing.Any, quantifier: str, numbers: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], out: typing.Any, state: typing.Any) -> None:
    """
    The quantifier of each segment of values.
    """
def fuzzy_segments_backward(grad: typing.Any, state: typing.Any, values: typing.Any, row_ptr: typing.Any, quantifier: str, numbers: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], values_grad: typing.Any) -> None:
    """
    The gradient of the values.
    """
def gather_patches(x: typing.Any, keep_ids: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def is_plain(tensors: typing.Any) -> bool:
    """
    Whether torch has nothing more to do with these (None among them) than to run a kernel.
    """
def isa() -> str:
    """
    The level in use.
    """
def isas_compiled() -> list[str]:
    """
    Instruction-set levels of this build.
    """
def isas_supported() -> list[str]:
    """
    Levels this processor runs.
    """
def keep_freed_memory(bytes: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Makes glibc reuse blocks up to this size; whether it could be told so.
    """
def keep_ids_from_ranks(restore_ids: typing.Any, keep_ids: typing.Any) -> None:
    """
    Writes keep_ids[b, restore_ids[b, n]] = n for the ranks that fit.
    """
def last_level_cache() -> int:
    """
    Bytes of last-level cache.
    """
def logmatmul(a: typing.Any, b: typing.Any, alpha: typing.SupportsFloat | typing.SupportsIndex, mean: bool, out: typing.Any) -> None:
    """
    log(sum or mean of exp(alpha (a + b))) / alpha over the shared axis of two batches of matrices.
    """
def logmatmul_backward(grad: typing.Any, a: typing.Any, b: typing.Any, alpha: typing.SupportsFloat | typing.SupportsIndex, mean: bool, a_grad: typing.Any, b_grad: typing.Any) -> None:
    """
    Gradients of both, None: not wanted.
    """
def mixing_backward(S: typing.Any, z: typing.Any, is_input: typing.Any, solution: typing.Any, z_grad: typing.Any, prox_lam: typing.SupportsFloat | typing.SupportsIndex, sweeps: typing.SupportsInt | typing.SupportsIndex, official: bool, S_grad: typing.Any, input_grad: typing.Any) -> None:
    """
    Fills the gradients of S and z, each of which may be None.
    """
def mixing_forward(S: typing.Any, z: typing.Any, is_input: typing.Any, V0: typing.Any, seed: typing.Any, first_sample: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, max_iter: typing.SupportsInt | typing.SupportsIndex, eps: typing.SupportsFloat | typing.SupportsIndex, draw_order: bool, solution: typing.Any) -> None:
    """
    Fills the solution (z, V, norms, negative, order, counts); V0 may be None.
    """
def moe_combine(y: typing.Any, gates: typing.Any, starts: typing.Any, rows: typing.Any, out: typing.Any) -> None:
    """
    The weighted sum of each token's rows; gates may be None.
    """
def moe_combine_backward(out_grad: typing.Any, y: typing.Any, gates: typing.Any, token_ids: typing.Any, y_grad: typing.Any, gates_grad: typing.Any) -> None:
    """
    The gradients of combine; y_grad may be None.
    """
def moe_dispatch(x: typing.Any, token_ids: typing.Any, out: typing.Any) -> None:
    """
    out[r] = x[token_ids[r]].
    """
def norm_rows(x: typing.Any, out: typing.Any, rstd: typing.Any, eps: typing.SupportsFloat | typing.SupportsIndex) -> None:
    """
    out = (x - mean) rstd over the last dimension; rstd has one number per row.
    """
def norm_rows_backward(grad: typing.Any, normalised: typing.Any, rstd: typing.Any, x_grad: typing.Any) -> None:
    """
    The gradient of norm_rows's x from its out; x_grad may be grad or normalised.
    """
def openmp_runtime() -> str:
    """
    Path of the OpenMP library.
    """
def pair_mlp(u: typing.Any, v: typing.Any, w: typing.Any, b: typing.Any, hidden: typing.Any, hidden_bias: typing.Any, activation: str, out: typing.Any) -> None:
    """
    The scores of all pairs; b, hidden and hidden_bias may be None.
    """
def pair_mlp_backward(grad: typing.Any, u: typing.Any, v: typing.Any, w: typing.Any, hidden: typing.Any, hidden_bias: typing.Any, activation: str, u_grad: typing.Any, v_grad: typing.Any, w_grad: typing.Any, b_grad: typing.Any, hidden_grad: typing.Any, hidden_bias_grad: typing.Any) -> None:
    """
    The gradients, None where not wanted.
    """
def philox4x32(counter: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"], key: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"]) -> typing.Annotated[list[int], "FixedSize(4)"]:
    """
    One block of Philox4x32-10: four random words from a counter of four and a key of two words.
    """
def random_keep_ids(keep_ids: typing.Any, restore_ids: typing.Any, seed: typing.SupportsInt | typing.SupportsIndex, offset: typing.SupportsInt | typing.SupportsIndex, ordered: bool) -> None:
    """
    Fills both with uniform draws without replacement.
    """
def raw_dropped_sum(x: typing.Any, keep_ids: typing.Any) -> typing.Any:
    """
    Sum of the rows that keep_ids does not name.
    """
def raw_gather_patches(x: typing.Any, keep_ids: typing.Any, out: typing.Any) -> typing.Any:
    """
    Runs the kernel, whatever autograd says.
    """
def raw_restore_patches(y: typing.Any, keep_ids: typing.Any, tokens: typing.SupportsInt | typing.SupportsIndex, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    Runs the kernel, whatever autograd says.
    """
def register_torch(tensor_type: typing.Any, parameter_type: typing.Any, is_grad_enabled: typing.Any, increment_version: typing.Any, forward_ad: typing.Any, dispatch: typing.Any) -> None:
    """
    Tells the module how to ask torch for its state.
    """
def restore_patches(y: typing.Any, keep_ids: typing.Any, tokens: typing.Any, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def restore_patches_from_ranks(y: typing.Any, restore_ids: typing.Any, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def route_backward(logits: typing.Any, gates_grad: typing.Any, renormalize: bool, routing: typing.Any, grad: typing.Any) -> None:
    """
    The gradient of the logits from that of the gates.
    """
def route_expert_choice(logits: typing.Any, capacity: typing.SupportsInt | typing.SupportsIndex, routing: typing.Any) -> None:
    """
    Fills the five arrays of a routing.
    """
def route_ids(expert_ids: typing.Any, experts: typing.SupportsInt | typing.SupportsIndex, routing: typing.Any) -> None:
    """
    Fills the five arrays of a routing, with the place of each row's choice instead of its gate.
    """
def route_topk(logits: typing.Any, k: typing.SupportsInt | typing.SupportsIndex, renormalize: bool, routing: typing.Any) -> None:
    """
    Fills the five arrays of a routing.
    """
def sanitizers() -> str:
    """
    Sanitizers built in, or ''.
    """
def synchronize() -> None:
    """
    Waits for the devices that ops have used, and raises what their kernels found wrong.
    """
def threads() -> int:
    """
    Threads that an op may use now.
    """
