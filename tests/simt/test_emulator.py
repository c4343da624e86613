"""The emulator itself: right kernels pass, and each class of planted bug is caught."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INCLUDES = [f"-I{HERE}/include", f"-I{HERE}", f"-I{ROOT}/csrc"]
RIGHT = ("sums", "histogram", "rotation", "ranks")
SCHEDULES = range(1, 7)

SANITIZED = {
    "": ([], []),
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ["-DSIMT_ADDRESS_SANITIZER"]),
    "thread": (["-fsanitize=thread"], ["-DSIMT_THREAD_SANITIZER"]),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile `name`.cu with the emulator, once for each sanitizer."""
    folder = tmp_path_factory.mktemp("emulator")

    def compile_(name, sanitizer=""):
        target = folder / f"{name}-{sanitizer or 'plain'}"
        if target.exists():
            return target
        flags, defines = SANITIZED[sanitizer]
        common = [
            "g++",
            "-std=c++20",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            *INCLUDES,
        ]
        scheduler = folder / f"simt-{sanitizer or 'plain'}.o"
        # The scheduler tells ThreadSanitizer about fibers, and is not watched itself.
        own = [] if sanitizer == "thread" else flags
        for command in (
            [*common, *own, *defines, "-c", str(HERE / "simt.cpp"), "-o", str(scheduler)],
            [*common, *flags, "-xc++", str(HERE / f"{name}.cu"), "-xnone", str(scheduler), "-o", str(target)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
        return target

    return compile_


def run(program, case, seed=0):
    environment = os.environ | {"TENFOLD_SIMT_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program, case], capture_output=True, text=True, env=environment)
    return done.stdout.strip() if done.returncode == 0 else f"ended with {done.returncode}: {done.stderr}"


@pytest.mark.parametrize("seed", range(20))
def test_right_kernels_are_right_under_every_schedule(program, seed):
    for case in RIGHT:
        assert run(program("planted"), case, seed) == "right"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("shared_out_of_range", "shared array tile at .*: index 128 of 128 (block"),
        ("dynamic_out_of_range", "dynamic shared array extra at .*: index 128 of 128 (block"),
        ("divergent_shuffle", "a warp operation"),
        ("shuffle_from_outside", "a shuffle from a lane outside its mask"),
        ("early_return", "a barrier that some threads never reach"),
        ("skipped_barrier", "a barrier that some threads never reach"),
        ("trap", "__trap (block 0, thread 77)"),
    ],
)
def test_faults_are_named_under_every_schedule(program, case, said):
    for seed in (0, *SCHEDULES):
        text = run(program("planted"), case, seed)
        assert text.startswith("fault: ")
        for part in said.split(".*"):
            assert part in text


@pytest.mark.parametrize(
    "case", ["missing_barrier", "race", "warp_race", "cross_warp", "unwritten_output", "stale_shared"]
)
def test_wrong_results_show_under_shuffled_schedules(program, case):
    results = [run(program("planted"), case, seed) for seed in SCHEDULES]
    assert "wrong" in results
    assert set(results) <= {"right", "wrong"}


def test_a_schedule_is_a_function_of_its_seed(program):
    for seed in SCHEDULES:
        results = {run(program("planted"), "race", seed) for _ in range(3)}
        assert len(results) == 1


def test_a_stack_that_overflows_ends_the_process(program):
    assert run(program("planted"), "deep_stack").startswith("ended with -11")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_address_sanitizer_sees_global_memory(program, seed):
    for case in RIGHT:
        assert run(program("planted", "address"), case, seed) == "right"
    assert run(program("planted"), "global_out_of_range", seed) == "right"  # invisible without it
    text = run(program("planted", "address"), "global_out_of_range", seed)
    assert "heap-buffer-overflow" in text
    assert "planted.cu" in text


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_thread_sanitizer_sees_races_within_a_block(program, seed):
    for case in RIGHT:
        assert run(program("planted", "thread"), case, seed) == "right"
    for case in ("missing_barrier", "race", "warp_race", "cross_warp"):
        text = run(program("planted", "thread"), case, seed)
        assert "data race" in text
        assert "planted.cu" in text


def nearest(exact, dtype):
    """The number of `dtype` (an int16 pattern) nearest to each float64, ties to even."""
    rough = exact.to(dtype).view(torch.int16)
    patterns = torch.stack([rough - 1, rough, rough + 1])
    distance = (patterns.view(dtype).double() - exact).abs().nan_to_num(torch.inf)
    best = distance == distance.min(dim=0).values
    even = best & (patterns % 2 == 0)
    choice = torch.where(best.sum(dim=0) > 1, even.int().argmax(dim=0), best.int().argmax(dim=0))
    return patterns.gather(0, choice[None])[0]


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_arithmetic_of_16_bits(program, name, dtype):
    every = np.arange(2**16, dtype=np.uint16)
    other = np.random.default_rng(0).permutation(every)
    pairs = np.stack([every, other], axis=1)
    done = subprocess.run(
        [program("arithmetic"), name], input=pairs.tobytes(), capture_output=True, check=True
    )
    got = np.frombuffer(done.stdout, np.dtype([("ops", np.uint16, 6), ("wide", np.float32)]))
    a, b = (torch.from_numpy(column.copy().view(np.int16)).view(dtype) for column in (every, other))
    assert torch.equal(torch.from_numpy(got["wide"].copy()).nan_to_num(7), a.float().nan_to_num(7))
    x, y = a.double(), b.double()
    # A fused multiply-add only where double holds it exactly: factors of a few bits.
    exact = {0: x + y, 1: x - y, 2: x * y, 3: x / y, 4: x * y + x}
    for column, want in exact.items():
        mine = torch.from_numpy(got["ops"][:, column].copy().view(np.int16))
        numbers = want.isfinite() & (want.abs() <= torch.finfo(dtype).max) & (want != 0)
        assert numbers.float().mean() > 0.4
        if column == 4:
            scale = (x * y).abs().clamp(min=1e-300) / x.abs().clamp(min=1e-300)
            numbers &= (scale > 2.0**-20) & (scale < 2.0**20)
        assert torch.equal(mine[numbers], nearest(want, dtype)[numbers])
        assert mine.view(dtype).isnan().equal(want.isnan())
