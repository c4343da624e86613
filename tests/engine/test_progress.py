"""The plain form speaks once a minute, the bar shows what it is told."""

import io

from tenfold.engine.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_once_an_interval():
    now = [0.0]
    stream = io.StringIO()
    with progress(1000, 100, "train", stream=stream, clock=lambda: now[0]) as bar:
        for step in range(101, 1001):
            now[0] += 0.2  # 180 seconds in all
            bar.update(step, loss=1 / 3, speed="448 images/s")
        bar.print("done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "train 400/1000  loss 0.3333  speed 448 images/s  eta 2:00"
    assert lines[2].startswith("train 1000/1000")
    assert lines[2].endswith("in 3:00")
    assert lines[3] == "done"


def test_long_times():
    now = [0.0]
    stream = io.StringIO()
    with progress(3, stream=stream, clock=lambda: now[0]) as bar:
        now[0] = 3661.0
        bar.update(1)
    assert stream.getvalue() == "1/3  eta 2:02:02\n"


def test_bar_on_a_terminal():
    stream = Terminal()
    with progress(10, 2, "train", stream=stream) as bar:
        bar.update(7, loss=0.25)
        bar.print("saved [here]")
    text = stream.getvalue()
    assert "7/10" in text
    assert "loss 0.25" in text
    assert "saved [here]" in text


def test_an_error_passes_through():
    for stream in (io.StringIO(), Terminal()):
        try:
            with progress(10, stream=stream):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("the interrupt was swallowed")
