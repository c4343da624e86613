"""Cells of a plan: which run, side by side, and what is said of those that do not end well."""

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tenfold.engine import cells
from tenfold.engine.cells import Job, chosen, run_jobs, run_named
from tenfold.engine.interrupt import INTERRUPTED
from tenfold.engine.results import read_arms, write_document, write_result
from tenfold.errors import UserError


@dataclass(frozen=True)
class Planned:
    arm: str
    seed: int = 0

    @property
    def name(self):
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Options:
    results: Path
    runs: Path
    cells: tuple[str, ...] = ()
    laptop: bool = False


@pytest.fixture
def options(tmp_path):
    return Options(tmp_path / "results", tmp_path / "runs")


def test_jobs_run_side_by_side_as_far_as_their_threads_fit(monkeypatch, options):
    lock, busy, seen = threading.Lock(), [], []

    def work(method, job, options):
        with lock:
            busy.append(job.threads)
            seen.append((job.names[0], sum(busy)))
        time.sleep(0.02)
        with lock:
            busy.remove(job.threads)
        return 0

    monkeypatch.setattr(cells, "_run_in_process", work)
    jobs = [Job((name,), threads) for name, threads in zip("abcdef", (1, 1, 2, 1, 4, 1), strict=True)]
    run_jobs("any", jobs, options, cores=2)
    assert sorted(name for name, _ in seen) == list("abcdef")
    together = dict(seen)
    assert together["c"] == 2 and together["e"] == 4  # the one with too many threads runs alone
    assert max(together["a"], together["b"]) == 2


def test_a_failed_job_is_named_and_the_others_run(monkeypatch, options):
    ran = []
    monkeypatch.setattr(
        cells, "_run_in_process", lambda method, job, _: ran.append(job) or int(job.names[0] == "b")
    )
    with pytest.raises(UserError, match=r"runs/b\.log \(status 1\)"):
        run_jobs("any", [Job((name,)) for name in "abc"], options, cores=1)
    assert len(ran) == 3


def test_none_begins_after_an_interrupted_one_or_at_the_limit(monkeypatch, options, capsys):
    monkeypatch.setattr(cells, "_run_in_process", lambda method, job, _: INTERRUPTED)
    with pytest.raises(UserError, match=r"a\.log \(status 130\);"):
        run_jobs("any", [Job(("a",)), Job(("b",))], options, cores=1)
    assert "b: left out, interrupted" in capsys.readouterr().out
    run_jobs("any", [Job(("a",))], options, 1, lambda: False)
    assert "a: left out, the plan's hours are over" in capsys.readouterr().out


def test_a_process_gets_its_cells_its_threads_and_a_log(monkeypatch, options):
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:]); sys.exit(3)"
    run = cells.subprocess.run
    monkeypatch.setattr(
        cells.subprocess, "run", lambda command, **kw: run([sys.executable, "-c", program, *command], **kw)
    )
    with pytest.raises(UserError, match="status 3"):
        run_jobs("some", [Job(("a", "b"), threads=2)], options, cores=2)
    words = (options.runs / "a.log").read_text().split()
    assert (
        words[0] == "2"
        and words[-3:] == ["--cells", "a", "b"]
        and words[3:6] == ["tenfold", "reproduce", "some"]
    )


def test_named_cells_run_here_once(options, capsys):
    planned, ran = [Planned("a"), Planned("a", 1), Planned("b")], []

    def run(cell, target):
        ran.append(cell.name)
        if cell.seed:
            raise MemoryError("no memory")
        write_result(target, {"arm": cell.arm})
        return 0

    named = Options(options.results, options.runs, cells=("a-seed1", "a-seed0"))
    assert run_named(planned, named, run) == 1  # the first fails, the second runs all the same
    assert "no memory" in capsys.readouterr().err
    assert run_named(planned, named, run) == 1 and ran == ["a-seed1", "a-seed0", "a-seed1"]
    assert read_arms(options.results, planned, ("arm",)) == {"a": [{"arm": "a"}]}
    with pytest.raises(UserError, match="--cells c: no such cell"):
        run_named(planned, Options(options.results, options.runs, cells=("c",)), run)


def test_arms_are_chosen_by_name_or_by_their_beginning():
    planned = [Planned("a"), Planned("a-one"), Planned("a-two"), Planned("b")]
    assert [cell.arm for cell in chosen(planned, [])] == ["a", "a-one", "a-two", "b"]
    assert [cell.arm for cell in chosen(planned, ["a"])] == ["a"]
    assert [cell.arm for cell in chosen(planned, ["a-", "b"])] == ["a-one", "a-two", "b"]
    with pytest.raises(UserError, match="--only c: no such arm; the plan has a, a-one, a-two, b"):
        chosen(planned, ["c"])


@pytest.mark.parametrize("content", ["{", "[]", "3", '["arm"]', '"arm"', '{"seed": 0}'])
def test_a_file_that_is_no_result_is_named(options, content):
    options.results.mkdir()
    (options.results / "a-seed0.json").write_text(content)
    with pytest.raises(UserError, match=r"a-seed0\.json: .*delete it, and its cell runs again"):
        read_arms(options.results, [Planned("a")], ("arm",))


def test_a_document_keeps_the_text_above_its_mark(tmp_path):
    target = tmp_path / "docs" / "one.md"
    write_document(target, "one", "A title", ["first"])
    text = target.read_text()
    assert text.startswith("# A title\n\n<!-- ") and text.endswith("-->\n\nfirst\n")
    target.write_text(text.replace("# A title\n", "# Another\n\nBy hand.\n"))
    write_document(target, "one", "A title", ["second"])
    assert target.read_text().startswith("# Another\n\nBy hand.\n\n<!-- ")
    assert target.read_text().endswith("-->\n\nsecond\n")
