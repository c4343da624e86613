"""The metrics file agrees with the checkpoint that a run goes on from."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.engine.metrics import MetricsLog, read_metrics
from tenfold.errors import UserError


def test_values_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(
            1, loss=torch.tensor(0.1, dtype=torch.float64), n=np.int64(3), f=np.float32(0.5), t="ü", b=True
        )
        log.log(2, loss=float("nan"), other=float("inf"))
    first, second = read_metrics(path)
    assert first == {"step": 1, "loss": 0.1, "n": 3, "f": 0.5, "t": "ü", "b": True}
    assert math.isnan(second["loss"])
    assert "NaN" not in path.read_text()


def test_lines_are_there_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.log(1, loss=1.0)
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}]
    log.close()


@pytest.mark.parametrize("torn", ["", '{"step": 6, "lo', '{"step"', "{"])
def test_resume_drops_what_came_after_the_checkpoint(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.log(step, loss=step / 3)
    with path.open("a") as stream:
        stream.write(torn)
    assert len(read_metrics(path)) == 5
    with MetricsLog(path, step=3) as log:
        log.log(4, loss=0.25)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["loss"] == 1.0
    assert rows[3]["loss"] == 0.25


def test_last_line_that_lost_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    with MetricsLog(path, step=2) as log:
        log.log(3)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_fresh_start_empties_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', ""])
def test_damage_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(path, step=3)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"cannot write .*absent/metrics\.jsonl"):
        MetricsLog(tmp_path / "absent" / "metrics.jsonl")
    with MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(TypeError, match="list"):
        log.log(1, loss=[1])


def test_full_disk(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(1, loss=1.0)
    log._stream.close()
    log._stream = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device; free"):
        log.log(2, loss=1.0)
    with pytest.raises(UserError, match="No space left"):
        log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
