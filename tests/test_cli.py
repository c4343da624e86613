"""The command line: one line and status 2 for every mistake, and nothing heavy before it is needed."""

import os
import subprocess
import sys
import types
from importlib import metadata

import pytest

from tenfold import __version__, cli
from tenfold.engine.options import parse
from tenfold.errors import UserError


@pytest.fixture
def method(monkeypatch):
    """A method named "probe" whose `train` runs what the test puts into it."""
    module = types.ModuleType("probe_method")
    module.COMMANDS = {"train": lambda argv: 0}
    monkeypatch.setitem(sys.modules, "probe_method", module)
    monkeypatch.setitem(cli.METHODS, "probe", "probe_method")
    return module.COMMANDS


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.rstrip("\n")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help(argv, capsys):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    for word in ("train METHOD", "evaluate", "sample", "reproduce", "data", "bench", "info", "microdit"):
        assert word in text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tenfold {__version__}\n"


def test_the_version_is_written_down_once_in_effect():
    try:
        assert metadata.version("tenfold") == __version__
    except metadata.PackageNotFoundError:
        pytest.skip("tenfold runs from the source tree without being installed")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert "microdit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian", "microdit"], "unknown command 'trian' (did you mean train?); see tenfold --help"),
        (["--verbose"], "unknown command '--verbose'; see tenfold --help"),
        (["train"], "tenfold train wants a method first, one of: microdit, satnet, ltn"),
        (["train", "--budget", "1m"], "tenfold train wants a method first, one of: microdit, satnet, ltn"),
        (
            ["train", "microdot"],
            "unknown method 'microdot' (did you mean microdit?); there are: microdit, satnet, ltn",
        ),
        (["info", "--all"], "unexpected argument '--all'; tenfold info takes none"),
    ],
)
def test_mistakes(argv, message, capsys):
    assert cli.main(argv) == 2
    assert one_line(capsys) == f"tenfold: error: {message}"


def test_a_method_gets_its_arguments_and_gives_the_status(method, capsys):
    method["train"] = lambda argv: len(argv)
    assert cli.main(["train", "probe", "--a", "b", "c"]) == 3
    assert cli.main(["evaluate", "probe"]) == 2
    assert one_line(capsys) == "tenfold: error: probe has no 'evaluate'; it has: train"


def test_user_error_is_one_line(method, capsys):
    def fail(argv):
        raise UserError("cannot read a.txt:\n  line 3\nis empty")

    method["train"] = fail
    assert cli.main(["train", "probe"]) == 2
    assert one_line(capsys) == "tenfold: error: cannot read a.txt: line 3 is empty"


def test_other_errors_keep_their_traceback(method):
    def fail(argv):
        raise RuntimeError("a bug")

    method["train"] = fail
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train", "probe"])


def test_ctrl_c(method, capsys):
    def fail(argv):
        raise KeyboardInterrupt

    method["train"] = fail
    assert cli.main(["train", "probe"]) == 130
    assert one_line(capsys) == "tenfold: interrupted"


@pytest.mark.parametrize("package", ["torch", "rich.progress", "safetensors"])
def test_missing_extra(method, capsys, monkeypatch, package):
    def needs_it(argv):
        __import__(package)
        return 0

    method["train"] = needs_it
    top = package.split(".")[0]
    for name in [name for name in sys.modules if name.split(".")[0] == top]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, top, None)
    assert cli.main(["train", "probe"]) == 2
    assert one_line(capsys) == (
        "tenfold: error: tenfold train needs the 'train' extra: "
        f"pip install 'tenfold[train]' ({top} is missing)"
    )


def test_bench_names_its_own_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    assert cli.main(["bench", "patches"]) == 2
    expected = (
        "tenfold bench needs the 'bench' extra: pip install 'tenfold[bench]' (pytest_benchmark is missing)"
    )
    assert one_line(capsys) == f"tenfold: error: {expected}"


def test_a_missing_module_of_our_own_is_a_bug(method):
    def fail(argv):
        import tenfold.no_such_module  # noqa: F401

        return 0

    method["train"] = fail
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main(["train", "probe"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--no-such-option", "3"], "unknown option --no-such-option"),
        (["--budgte", "1m"], "unknown option --budgte (did you mean --budget?)"),
        (["--budget", "soon"], "option --budget: cannot read the duration 'soon'"),
        (["--seed", "x"], "option --seed must be an integer, got 'x'"),
    ],
)
def test_options_of_microdit_are_checked_before_anything_runs(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "microdit", *argv]) == 2
    assert one_line(capsys).startswith(f"tenfold: error: {message}")
    assert list(tmp_path.iterdir()) == []


def run_python(code, *argv):
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)


def test_help_imports_no_third_party_package():
    code = """
import sys
before = set(sys.modules)
from tenfold.cli import main
main(["--help"])
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert run_python(code).stdout.splitlines()[-1] == "['tenfold']"


def test_info_needs_numpy_alone():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"tenfold", "numpy", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from tenfold.cli import main
sys.exit(main(["info"]))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout


@pytest.mark.parametrize("argv", [["--help"], ["data", "--help"]])
def test_a_closed_pipe_is_no_error(argv):
    code = f"""
import sys
from tenfold.cli import main
while not (status := main({argv})):
    pass
sys.exit(status)
"""
    # Unbuffered, argparse swallows the broken pipe itself and this loop would not end.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    writer = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout.readline().startswith("usage: tenfold")
    writer.stdout.close()
    assert writer.wait(timeout=60) == 141
    assert writer.stderr.read() == ""
    writer.stderr.close()


def test_options_reach_the_command_line_as_one_line(method, capsys):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Options:
        steps: int = 3

    method["train"] = lambda argv: parse(Options, argv, "tenfold train probe").steps
    assert cli.main(["train", "probe", "--steps", "7"]) == 7
    assert cli.main(["train", "probe", "--steps", "many"]) == 2
    expected = "option --steps must be an integer, got 'many'; see tenfold train probe --help"
    assert one_line(capsys) == f"tenfold: error: {expected}"


def test_an_unknown_level_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "tenfold", "info"],
        env={**os.environ, "TENFOLD_ISA": "avx9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tenfold: error: TENFOLD_ISA: got 'avx9'")
    assert done.stderr.count("\n") == 1


def test_waiting_threads_leave_the_cores_unless_the_user_says_otherwise(monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    cli.main(["--version"])
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli.main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    cli.main(["--version"])
    assert os.environ.pop("GOMP_SPINCOUNT") == "10000"
