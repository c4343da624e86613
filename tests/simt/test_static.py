"""Kernels as the compiler made them: no spills, no local memory, wide loads, no compare-and-swap."""

import pytest

from simt import static

if static.nvcc() is None:
    pytest.skip("no nvcc on PATH: CUDA kernels are not compiled here", allow_module_level=True)

cases = pytest.mark.parametrize(
    ("source", "architecture"),
    [
        pytest.param(source, architecture, marks=[] if architecture == "sm_90a" else [pytest.mark.slow])
        for source in static.sources()
        for architecture in static.ARCHITECTURES
    ],
    ids=lambda value: getattr(value, "stem", value),
)
disassembled = pytest.mark.skipif(
    static.cuobjdump() is None, reason="no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
)


@cases
def test_registers_and_shared_memory(source, architecture):
    kernels = static.compiled(source, architecture)
    assert kernels
    assert {kernel.name: static.resource_faults(kernel) for kernel in kernels.values()} == {
        name: [] for name in kernels
    }


@disassembled
@cases
def test_instructions(source, architecture):
    kernels = static.compiled(source, architecture)
    assert {kernel.name: static.instruction_faults(kernel) for kernel in kernels.values()} == {
        name: [] for name in kernels
    }


def test_every_kernel_of_the_table_exists():
    kernels = {name for source in static.sources() for name in static.compiled(source, "sm_90a")}
    assert {work.kernel for work in static.WORK} <= kernels
    assert set(static.WIDE) <= kernels


def test_faults_would_be_seen(tmp_path):
    # A kernel that holds more than it has registers for, and one that loops around a compare-and-swap: the
    # checks above must not be blind to them.
    source = tmp_path / "spilling_cuda.cu"
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(1024) spill(float* x) {\n'
        "  float held[200];\n#pragma unroll\n"
        "  for (int i = 0; i < 200; ++i) held[i] = x[i * threadIdx.x];\n#pragma unroll\n"
        "  for (int i = 0; i < 200; ++i) x[i + threadIdx.x] = held[i] * held[199 - i];\n}\n"
        'extern "C" __global__ void swap(unsigned* at, float x) {\n'
        "  unsigned old = *at, seen;\n"
        "  do { seen = old; old = atomicCAS(at, seen, __float_as_uint(__uint_as_float(seen) * x)); }\n"
        "  while (old != seen);\n}\n"
    )
    kernels = static.compiled(source, "sm_90a")
    assert {"spilled registers", "a stack frame"} <= set(static.resource_faults(kernels["spill"]))
    assert static.resource_faults(kernels["swap"]) == []
    if static.cuobjdump():
        assert "local memory" in static.instruction_faults(kernels["spill"])
        assert static.instruction_faults(kernels["swap"]) == ["compare and swap"]
