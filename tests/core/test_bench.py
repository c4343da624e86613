"""`tenfold bench`: the arithmetic of the table, the files, and what it refuses. No timing is asserted."""

import json

import pytest

from tenfold import bench
from tenfold.errors import UserError

MACHINE = {
    "processor": "one",
    "last_level_cache_mib": 32.0,
    "isa": "avx2",
    "compiler": "GNU 1",
    "versions": {"torch": "2"},
    "copy_gb_per_s": {"8 MiB": 50.0},
}


def row(tenfold, other, targets=None, **changes):
    info = {"op": "gather", "shape": "2x3", "dtype": "fp32", "regime": "fresh", "threads": 1, "error": 0.0}
    info |= {"seconds": {"tenfold": tenfold, "other": other}, "targets": targets or {}}
    return {"extra_info": info | changes}


@pytest.fixture
def report(tmp_path):
    target = {"other": ("gather", 2.0)}
    rows = [
        row(1e-3, 1e-3, target),
        row(1e-3, 9e-3, target, shape="4x5"),
        row(2e-6, 1e-6, {"seconds": ("call", 1e-6)}, op="call"),
        row(3e-3, 2e-3, {"other": ("copy", -1.2)}, op="copy"),
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": rows}))
    return path


def test_targets_are_geometric_means(report):
    found = {t.title: t for t in bench.targets(bench._rows(json.loads(report.read_text())))}
    assert found["gather"].measured == "3.00x (1.00, 9.00)"
    assert found["gather"].met
    assert found["call"].measured == "2.00 us"
    assert not found["call"].met
    assert found["copy"].measured == "1.50x"
    assert not found["copy"].met


def test_tables_and_files(report, tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    out = tmp_path / "made" / "bench.json"
    out.parent.mkdir()
    assert bench.main(["--dir", str(tmp_path), "--read", str(report), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "| 4x5   | fp32 | fresh   | 1       | 1.000 ms | 0     | 9.00  |" in text
    assert "| call" in text
    assert "NO" in text
    assert out.with_suffix(".md").read_text() == f"{bench.MARK}\n\n{text}"
    out.with_suffix(".md").write_text(f"by hand\n{bench.MARK}\nold")
    bench.main(["--dir", str(tmp_path), "--read", str(report), "--json", str(out)])
    assert out.with_suffix(".md").read_text() == f"by hand\n{bench.MARK}\n\n{text}"
    assert json.loads(out.read_text())["machine_info"] == MACHINE
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def refused(message, *argv):
    with pytest.raises(UserError, match=message):
        bench.main(list(argv))


def test_what_is_refused(tmp_path):
    refused("is not a folder; the benchmarks are in tenfold's source tree: clone it", "--dir", str(tmp_path))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/bench_moe.py").touch()
    refused("no benchmark of family 'patches' in .*; there are: moe", "patches", "--dir", str(tmp_path))
    refused("No such file", "--dir", str(tmp_path), "--read", str(tmp_path / "none"))
    (tmp_path / "text").write_text("no json")
    for content in ("[]", "{}", '{"benchmarks": [{"extra_info": {"seconds": {}}}], "machine_info": {}}'):
        (tmp_path / "odd").write_text(content)
        refused("is not a benchmark report", "--dir", str(tmp_path), "--read", str(tmp_path / "odd"))
    refused("--foo", "--foo")
    refused("wanted a name that ends in .json", "--json", str(tmp_path / "table.md"))
    refused("cannot write in .*gone", "--json", str(tmp_path / "gone/report.json"))
    refused("is not a benchmark report", "--dir", str(tmp_path), "--read", str(tmp_path / "text"))


def test_a_run_without_rows_says_so(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/bench_none.py").touch()
    refused("no benchmark produced a row", "none", "--dir", str(tmp_path))
