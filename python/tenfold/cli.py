"""The command line: `tenfold VERB METHOD ...`, and `tenfold data | bench | info`.

Nothing heavy is imported before it is needed: --help imports no third-party package, `info` only numpy.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from tenfold import __version__
from tenfold.errors import UserError

# A method's package has COMMANDS: dict[str, Callable[[list[str]], int]], from verb to a function of the
# arguments after the method's name that returns the exit status.
METHODS = {
    "microdit": "tenfold.methods.microdit",
    "satnet": "tenfold.methods.satnet",
    "ltn": "tenfold.methods.ltn",
}

VERBS = {
    "train": "train a method from scratch, or go on with --resume RUN",
    "evaluate": "measure a trained run",
    "sample": "draw from a trained run",
    "reproduce": "run a method's committed experiment plan",
}

_INTERRUPTED = 130  # 128 + SIGINT and 128 + SIGPIPE, as shells report them
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr and status 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when libgomp is loaded. Its own count, 300,000, keeps waiting threads on the cores for
        # milliseconds: beside another busy process a training step took 11 times as long, with this 3 times
        # (the default preset on 2 cores of an Intel Xeon; throw-away measurements).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:  # argparse has printed a --help
            status = int(stop.code or 0)
        sys.stdout.flush()
        return status
    except UserError as error:
        # One line, whatever the message quotes.
        print("tenfold: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except ImportError as error:
        if "TENFOLD_ISA" not in str(error):  # the core refuses to load with a level that it cannot use
            raise
        print("tenfold: error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tenfold: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`tenfold info | head -1`); let the interpreter's own flush at exit succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print("tenfold: warning:", " ".join(str(message).split()), file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, rest = argv[0], argv[1:]
    if verb == "--version":
        print(f"tenfold {__version__}")
        return 0
    if verb in _PLAIN:
        run, extra, _ = _PLAIN[verb]
        return _with_extra(verb, extra, lambda: run(rest))
    if verb in VERBS:
        return _run_method(verb, rest)
    from tenfold.engine.options import closest

    raise UserError(f"unknown command {verb!r}{closest(verb, [*VERBS, *_PLAIN])}; see tenfold --help")


def _run_method(verb: str, argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: tenfold {verb} METHOD ...\n\n{VERBS[verb]}\n\nmethods: {', '.join(METHODS)}")
        print(f"tenfold {verb} METHOD --help lists the options of one method")
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError(f"tenfold {verb} wants a method first, one of: {', '.join(METHODS)}")
    method, rest = argv[0], argv[1:]
    if method not in METHODS:
        from tenfold.engine.options import closest

        known = ", ".join(METHODS)
        raise UserError(f"unknown method {method!r}{closest(method, METHODS)}; there are: {known}")

    def run() -> int:
        commands: dict[str, Callable[[list[str]], int]] = importlib.import_module(METHODS[method]).COMMANDS
        if verb not in commands:
            raise UserError(f"{method} has no {verb!r}; it has: {', '.join(commands)}")
        return commands[verb](rest)

    return _with_extra(verb, "train", run)


def _with_extra(verb: str, extra: str, run: Callable[[], int]) -> int:
    """Run a command; a package that is not installed becomes the name of the extra that brings it."""
    try:
        return run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "tenfold"):
            raise
        raise UserError(
            f"tenfold {verb} needs the '{extra}' extra: pip install 'tenfold[{extra}]' ({missing} is missing)"
        ) from error


def _info(argv: list[str]) -> int:
    if argv in (["-h"], ["--help"]):
        print(f"usage: tenfold info\n\n{_PLAIN['info'][2]}")
        return 0
    if argv:
        raise UserError(f"unexpected argument {argv[0]!r}; tenfold info takes none")
    from tenfold.info import report

    print(report())
    return 0


def _bench(argv: list[str]) -> int:
    # The benchmarks run in a process of their own, whose missing packages would be found too late.
    for package in ("torch", "pytest_benchmark"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    from tenfold.bench import main as bench_main

    return bench_main(argv)


def _data(argv: list[str]) -> int:
    from tenfold.data.cli import main as data_main

    return data_main(argv)


# Commands without a method: function, the extra it needs, help.
_PLAIN: dict[str, tuple[Callable[[list[str]], int], str, str]] = {
    "data": (_data, "train", "list and fetch data sets"),
    "bench": (_bench, "bench", "run the benchmarks of a checkout"),
    "info": (_info, "train", "print version, build, ISA levels, threads, devices and optional packages"),
}


def _usage() -> str:
    rows = [(f"{verb} METHOD", text) for verb, text in VERBS.items()]
    rows += [(verb, text) for verb, (_, _, text) in _PLAIN.items()]
    commands = "\n".join(f"  {name:<18}{text}" for name, text in rows)
    methods = ", ".join(METHODS)
    return (
        "usage: tenfold VERB METHOD [OPTIONS]\n"
        "       tenfold data | bench | info [OPTIONS]\n\n"
        f"{commands}\n\n"
        f"methods: {methods}\n\n"
        "tenfold VERB METHOD --help lists the options; tenfold --version prints the version."
    )
