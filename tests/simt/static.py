"""What can be known of a CUDA kernel without a GPU: it is compiled, and the result is read.

`python tests/simt/static.py` writes the table of docs/gpu.md.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
SHARED_LIMIT = 48 << 10
"""Static shared memory of a block, on every architecture."""
REGISTER_LIMIT = 128
"""A block of 256 threads then leaves room for another one on a multiprocessor."""

# NVIDIA H100 SXM: 3.35 TB/s of memory, 67 TFLOP/s in float32.
H100_BYTES_PER_SECOND, H100_FLOPS = 3.35e12, 67e12

MARK = "<!-- Everything below is written by tests/simt/static.py; text above is kept. -->"


@dataclass
class Kernel:
    """One instance of a kernel, compiled for one architecture."""

    name: str
    registers: int
    spilled: int
    stack: int
    shared: int
    sass: list[str] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        """Instructions whose name matches."""
        return sum(bool(re.match(pattern, instruction)) for instruction in self.sass)


LOCAL = r"(LDL|STL)(\.|$)"
COMPARE_AND_SWAP = r"ATOM[SG]?\.(.*\.)?CAS|ATOMS\.CAST"
WIDE_LOAD, WIDE_STORE = r"LDG\.E\.(.*\.)?128", r"STG\.E\.(.*\.)?128"

# Kernels that move rows in units of 16 bytes: what each must have.
WIDE = {
    "gather_rows<16, false>": (WIDE_LOAD, WIDE_STORE),
    "gather_rows<16, true>": (WIDE_LOAD, WIDE_STORE),
    "restore_rows<16, false>": (WIDE_LOAD, WIDE_STORE),
    "restore_rows<16, true>": (WIDE_LOAD, WIDE_STORE),
    "dispatch_rows<float, 4>": (WIDE_LOAD, WIDE_STORE),
    "dispatch_rows<unsigned short, 8>": (WIDE_LOAD, WIDE_STORE),
    "combine_rows<float, 4>": (WIDE_LOAD, WIDE_STORE),
    "combine_rows<unsigned short, 8>": (WIDE_LOAD, WIDE_STORE),
    "combine_rows_backward<float, 4>": (WIDE_LOAD, WIDE_STORE),
    "combine_rows_backward<unsigned short, 8>": (WIDE_LOAD, WIDE_STORE),
    "short_rows<float, 8>": (WIDE_LOAD, WIDE_STORE),
    "long_rows<float, 8>": (WIDE_LOAD, WIDE_STORE),
    "grad_rows<float, 8>": (WIDE_LOAD, WIDE_STORE),
    "norm_grid<float, 8>": (WIDE_LOAD, WIDE_STORE),
    "norm_grid_backward<float, 8>": (WIDE_LOAD, WIDE_STORE),
    **{
        f"{kernel}<{units}>": (WIDE_LOAD, WIDE_STORE)
        for kernel in ("activate_units", "activate_units_backward")
        for kind, gated in itertools.product(range(4), ("false", "true"))
        for units in (f"float, {kind}, {gated}, 4", f"unsigned short, {kind}, {gated}, 8")
    },
    "sum_chunks<float, float, 4>": (WIDE_LOAD,),
    "sum_chunks<unsigned short, float, 8>": (WIDE_LOAD,),
    "sum_chunks<double, double, 2>": (WIDE_LOAD,),
}


def resource_faults(kernel: Kernel) -> list[str]:
    """What is wrong with the resources of a kernel."""
    found = {
        "spilled registers": kernel.spilled > 0,
        "a stack frame": kernel.stack > 0,
        f"more than {REGISTER_LIMIT} registers": not 0 < kernel.registers <= REGISTER_LIMIT,
        f"more than {SHARED_LIMIT} bytes of shared memory": kernel.shared > SHARED_LIMIT,
    }
    return [fault for fault, there in found.items() if there]


def instruction_faults(kernel: Kernel) -> list[str]:
    """What is wrong with the instructions of a kernel."""
    found = {
        "no instructions read": len(kernel.sass) < 10,
        "local memory": kernel.count(LOCAL) > 0,
        "compare and swap": kernel.count(COMPARE_AND_SWAP) > 0,
        "no access of 16 bytes": any(not kernel.count(pattern) for pattern in WIDE.get(kernel.name, ())),
    }
    return [fault for fault, there in found.items() if there]


def nvcc() -> str | None:
    return shutil.which("nvcc")


@functools.cache
def cuobjdump() -> str | None:
    """The disassembler: the toolkit's, or that of the packages nvidia-cuda-cuobjdump and -nvdisasm."""
    wheels = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [str(path.parent) for path in sorted(wheels.glob("*/bin/cuobjdump"))]
    return shutil.which("cuobjdump", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def sources() -> list[Path]:
    return sorted(ROOT.glob("csrc/*/*_cuda.cu"))


@functools.cache
def compiled(source: Path, architecture: str) -> dict[str, Kernel]:
    """Every kernel of `source` by its readable name; with instructions where there is a disassembler."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [nvcc() or "nvcc", "-std=c++20", "-O3", "-DNDEBUG", "-DTENFOLD_HAVE_CUDA", f"-I{ROOT}/csrc"]
        command += [f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        kernels = _resources(done.stderr)
        if cuobjdump():
            _disassemble(cubin, kernels)
    names = _demangle(list(kernels))
    for mangled, kernel in kernels.items():
        kernel.name = names[mangled]
    return {kernel.name: kernel for kernel in kernels.values()}


def _resources(log: str) -> dict[str, Kernel]:
    """Parse what ptxas -v prints: a line with the kernel's name, one on the stack, one on registers."""
    kernels: dict[str, Kernel] = {}
    current = ""
    for line in log.splitlines():
        if match := re.search(r"Function properties for (\w+)", line):
            current = match[1]
            kernels.setdefault(current, Kernel(current, 0, 0, 0, 0))
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            kernels[current].stack = int(match[1])
            kernels[current].spilled = int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[current].registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[current].shared = int(shared[1]) if shared else 0
    return kernels


def _disassemble(cubin: Path, kernels: dict[str, Kernel]) -> None:
    tool = cuobjdump() or ""
    path = f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump starts nvdisasm
    done = subprocess.run(
        [tool, "-sass", str(cubin)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
        check=True,
    )
    current = ""
    for line in done.stdout.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            current = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            kernels[current].sass.append(match[1])


def _demangle(names: list[str]) -> dict[str, str]:
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    shown = [line.rpartition("::")[2] for line in done.stdout.splitlines()]
    return dict(zip(names, shown, strict=True))


# ---- the table ----

SHAPE = (
    64,
    256,
    1024,
)  # batch, tokens, width: the first shape of the benchmark, a quarter of the tokens kept
_B, _N, _D = SHAPE
_K = _N // 4
# The same tokens sent to two of eight experts each.
_T, _E, _R = _B * _N, 8, 2 * _B * _N
_CHUNKS = _N // 32
"""Parts in which the rows of a sample are added up: csrc/adaln/adaln.h."""
_HEADS = _D // 64
# Sudoku 9x9 in mixing: samples, variables, clauses, width of vectors, free variables, sweeps.
_P, _V, _M, _W, _L, _S = 40, 1030, 600, 32, 705, 32
_F = 4096
"""Rows and columns of the table of truth values in fuzzy's formulas."""
_U = 16
"""Units of each of the two layers of pair_mlp, on as many pairs as those tables have elements."""
# Operations of an element, about: what CUDA's erfcf, expf and division come to.
_GELU, _SILU, _ELU = 40, 20, 20


@dataclass
class Work:
    """Bytes and operations that a kernel cannot do without, for float32 and ids of 8 bytes."""

    kernel: str
    op: str
    bytes: int
    flops: int = 0


_PAIRS = 4 * (_F * _F + 2 * _F * _U)
"""Bytes of pair_mlp's scores, or their gradient, and of both sides."""

WORK = (
    Work("gather_rows<16, false>", "gather", 4 * 2 * _B * _K * _D + 8 * _B * _K),
    Work("restore_rows<16, false>", "restore; gather backward", 4 * _B * _D * (_K + _N) + 8 * _B * _K),
    Work(
        "sum_chunks<float, float, 4>",
        "mask token gradient",
        4 * _B * (_N - _K) * _D + 8 * _B * _K + 4 * 64 * _D,
        _B * (_N - _K) * _D,
    ),
    Work("sum_totals<float, float>", "its sum over the chunks", 4 * 64 * _D + 4 * _D, 64 * _D),
    Work("shuffle_ids<true>", "random ids", 8 * _B * (_K + _N)),
    Work("invert_ranks", "ids from ranks", 8 * _B * (_K + _N)),
    Work("choose_experts", "route_topk", 4 * _T * _E + 8 * _R + 4 * _T),
    Work("place_rows", "its rows", 8 * _R + 12 * _R + 4 * _E),
    Work("weigh_tokens", "route_expert_choice", 2 * 4 * _T * _E),
    Work("choose_tokens", "its rows", 4 * _T * _E + 8 * _R),
    Work("invert_choice", "its inverse map", 8 * _R + 4 * _T),
    Work("softmax_backward", "gradient of the gates", 2 * 4 * _T * _E + 8 * _R + 4 * _T),
    Work("dispatch_rows<float, 4>", "dispatch", 2 * 4 * _R * _D + 4 * _R),
    Work("combine_rows<float, 4>", "combine", 4 * (_R + _T) * _D + 8 * _R + 4 * _T, 2 * _R * _D),
    Work("combine_rows_backward<float, 4>", "its gradient", 4 * (2 * _R + _T) * _D + 12 * _R, 3 * _R * _D),
    Work("fold_vectors<float>", "vectors of gated_residual_adaln", 4 * 6 * _B * _D, 5 * _B * _D),
    Work(
        "short_rows<float, 8>",
        "gated_residual_adaln",
        4 * (4 * _T + 3 * _B) * _D + 8 * _T,
        10 * _T * _D,
    ),
    Work(
        "grad_rows<float, 8>",
        "its gradients of rows",
        4 * (5 * _T + 2 * _B) * _D + 8 * _T,
        14 * _T * _D,
    ),
    Work(
        "sum_columns<float>",
        "its sums over rows",
        4 * (4 * _T + 3 * _B * _CHUNKS) * _D + 8 * _T,
        7 * _T * _D,
    ),
    Work(
        "finish_samples<float>",
        "its gradients of vectors",
        4 * 3 * _B * (_CHUNKS + 1) * _D,
        3 * _B * _CHUNKS * _D,
    ),
    Work("norm_grid<float, 8>", "qk_norm, of q or k", 4 * 2 * _T * _D + 4 * _T, 6 * _T * _D),
    Work("norm_grid_backward<float, 8>", "its gradient", 4 * 3 * _T * _D + 4 * _T, 8 * _T * _D),
    Work("activate_units<float, 0, false, 4>", "activate, gelu", 4 * 2 * _T * _D, _GELU * _T * _D),
    Work(
        "activate_units_backward<float, 0, false, 4>",
        "its gradient",
        4 * 3 * _T * _D,
        (_GELU + 4) * _T * _D,
    ),
    Work(
        "activate_units<float, 2, true, 4>",
        "gated_activation, silu",
        4 * 3 * _T * _D,
        _SILU * _T * _D,
    ),
    Work(
        "activate_units_backward<float, 2, true, 4>",
        "its gradient",
        4 * 5 * _T * _D,
        (_SILU + 6) * _T * _D,
    ),
    Work("attend<float, 4, 1>", "attention", 4 * (4 * _T * _D + 2 * _HEADS * _T), 4 * _T * _N * _D),
    Work(
        "query_gradients<float, 4, 1>",
        "its gradient of q",
        4 * (5 * _T * _D + 3 * _HEADS * _T),
        6 * _T * _N * _D,
    ),
    Work(
        "key_gradients<float, 4, 1>",
        "its gradients of k and v",
        4 * (6 * _T * _D + 3 * _HEADS * _T),
        8 * _T * _N * _D,
    ),
    Work("rank_variables", "mixing: order of the visits", 4 * _V, _V * _V),
    Work("multiply<0>", "its products S S^T", 4 * (_V * _M + _V * _V), 2 * _V * _V * _M),
    Work("solve<32>", "mixing", 4 * (_V * _V + _P * _V * _W), 2 * _P * _S * _L * _L * _W),
    Work("solve_adjoint<32>", "its gradient", 4 * (_V * _V + 3 * _P * _V * _W), 2 * _P * _S * _L * _L * _W),
    Work("score_pairs<float, 0, 16>", "pair_mlp, elu", _PAIRS, 2 * _F * _F * _U * (_U + _ELU)),
    Work(
        "sum_rows<float, 0, 16, true>",
        "its gradients of u and of the weights",
        _PAIRS,
        _F * _F * _U * (6 * _U + 3 * _ELU),
    ),
    Work("sum_rows<float, 0, 16, false>", "its gradient of v", _PAIRS, _F * _F * _U * (4 * _U + 3 * _ELU)),
    Work("multiply<1>", "sum of U V^T", 4 * (2 * _P * _V * _W + _V * _V), 2 * _P * _V * _V * _W),
    Work("multiply<2>", "gradient of S", 4 * (_V * _V + 2 * _V * _M), 2 * _V * _V * _M),
    Work("reduce_pieces<float, 0>", "log_quantify of a, b and c", 4 * (_F * _F + 3 * _F), 30 * _F * _F),
    Work("reduce_gradient<float, 0>", "its gradient of c", 4 * (2 * _F * _F + 4 * _F), 40 * _F * _F),
    Work("reduce_pieces<float, 1>", "log_quantify, or", 4 * (_F * _F + 2 * _F), 90 * _F * _F),
    Work("reduce_gradient<float, 1>", "its gradient of r", 4 * (2 * _F * _F + 2 * _F), 90 * _F * _F),
    Work("reduce_pieces<float, 2>", "fuzzy_quantify of an implication", 4 * (_F * _F + 2 * _F), 20 * _F * _F),
    Work("reduce_gradient<float, 2>", "its gradient of r", 4 * (2 * _F * _F + 2 * _F), 40 * _F * _F),
    Work("sigmoid_atoms<float>", "atom_logits", 4 * 3 * _F * _F, 40 * _F * _F),
    Work("multiply_logs<float>", "logmatmul", 4 * 3 * _F * _F, 25 * _F * _F * _F),
)


def table(architecture: str = "sm_90a") -> str:
    """Rows for docs/gpu.md."""
    head = (
        "kernel",
        "op",
        "MiB moved",
        "MFLOP",
        "H100, lower bound, not measured",
        "registers",
        "shared memory",
    )
    lines = [f"| {' | '.join((*head, 'checks'))} |", "|" + " --- |" * (len(head) + 1)]
    by_architecture = {name: _everything(name) for name in ARCHITECTURES}
    for work in WORK:
        kernel = by_architecture[architecture][work.kernel]
        seconds = max(work.bytes / H100_BYTES_PER_SECOND, work.flops / H100_FLOPS)
        faults = [_faults(kernels[work.kernel]) for kernels in by_architecture.values()]
        cells = [
            f"`{work.kernel}`", work.op, f"{work.bytes / 2**20:.1f}", f"{work.flops / 1e6:.1f}",
            f"{seconds * 1e6:.1f} us", str(kernel.registers), f"{kernel.shared} B",
            "passed" if not any(faults) else "; ".join(sorted({fault for some in faults for fault in some})),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    everything = [kernel for kernels in by_architecture.values() for kernel in kernels.values()]
    passed = sum(not _faults(kernel) for kernel in everything)
    notes = (
        f"The shape is {_B} samples of {_N} tokens of {_D} float32, a quarter of the tokens kept, or each "
        f"sent to 2 of {_E} experts (or as many rows by expert choice); attention has {_HEADS} heads, every "
        f"token kept, and its time is that of float32 arithmetic; the tables of fuzzy are {_F} by {_F}, as "
        f"are the pairs of pair_mlp, whose layers have {_U} units each; "
        f"for mixing it is {_P} Sudoku boards of {_V} variables, {_L} of them free, {_M} clauses and width "
        f"{_W}, in {_S} sweeps. Registers and shared memory are "
        f"those for {architecture}. Checks, for {', '.join(ARCHITECTURES)}: no spilled register, no local "
        f"memory, at most {REGISTER_LIMIT} registers and {SHARED_LIMIT >> 10} KiB of shared memory, no "
        "compare-and-swap loop, loads and stores of 16 bytes where rows allow them. Of all "
        f"instances of all kernels, {passed} of {len(everything)} pass (tests/simt/test_static.py)."
    )
    return "\n".join([*lines, "", textwrap.fill(notes, 110)])


def _everything(architecture: str) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {}
    for source in sources():
        kernels |= compiled(source, architecture)
    return kernels


def _faults(kernel: Kernel) -> list[str]:
    return [*resource_faults(kernel), *instruction_faults(kernel)]


def main() -> int:
    if not (nvcc() and cuobjdump()):
        print("want nvcc and cuobjdump on PATH", file=sys.stderr)
        return 2
    target = ROOT / "docs/gpu.md"
    before = target.read_text(encoding="utf-8").partition(MARK)[0]
    target.write_text(f"{before}{MARK}\n\n{table()}\n", encoding="utf-8")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
