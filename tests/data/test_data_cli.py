import pytest

from tenfold import cli as top
from tenfold.data import cli
from tenfold.data.sudoku import SudokuManifest, load
from tenfold.errors import UserError


def manifest(folder):
    return SudokuManifest.read(folder / "manifest.json")


def test_sudoku_from_options(tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "sudoku",
        "--size",
        "4",
        "--puzzles",
        "30",
        "--seed",
        "3",
        "--givens",
        "6",
        "8",
        "--processes",
        "1",
    ]
    assert cli.main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"{out}: 27 puzzles to train on, 3 to test on" in said.out and said.err == ""
    settings = manifest(out).settings
    assert settings["seed"] == 3 and settings["givens"] == [6, 8] and settings["mean_givens"] == 7
    assert settings["split"] == "grid" and "0 in both" in said.out
    assert load(out).train.puzzles.shape == (27, 16)


def test_sudoku_of_size_9_is_checked_on_two_processes(tmp_path, capsys):
    pytest.importorskip("pysat", reason="python-sat, of the extra 'train', is not installed")
    out = tmp_path / "out"
    argv = ["sudoku", "--puzzles", "8", "--test", "3", "--processes", "2", "--check", "--out", str(out)]
    assert cli.main(argv) == 0
    assert "confirmed by python-sat" in capsys.readouterr().out
    assert (manifest(out).train, manifest(out).test, manifest(out).classes) == (5, 3, 8)


def test_sudoku_from_a_file(tmp_path, capsys):
    puzzle = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    (tmp_path / "mine.txt").write_text(puzzle)
    argv = ["sudoku", "--file", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    assert "1 puzzles to train on, 0 to test on" in capsys.readouterr().out
    assert manifest(tmp_path / "out").source == "mine.txt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--size", "5"], "argument --size: invalid choice: 5"),
        (["--puzzles", "5", "--test", "5"], "--puzzles is 5 and --test 5: none is left to train on"),
        (["--givens", "3", "8"], "givens are 3 to 8, wanted a range within 24 to 80"),
        (["--processes", "0"], "processes is 0, wanted 1 or more"),
        (["--test-share", "0.2"], "--test-share is for puzzles of yours"),
        (["--file", "x.txt", "--mean-givens", "30"], "--mean-givens is for generated puzzles"),
        (["--file", "x.txt"], "x.txt: cannot be read as UTF-8 text"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    out = [] if options == [] else ["--out", str(tmp_path / "out")]
    assert top.main(["data", "sudoku", *options, *out]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and message in said.err
    assert not (tmp_path / "out").exists()


def test_help_names_the_verbs(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(verb in said for verb in ("list", "fetch", "sudoku"))


def test_progress_is_shown_to_a_person_only(capsys, monkeypatch):
    cli._show_progress(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    cli._show_progress(1, 2)
    cli._show_progress(2, 2)
    assert capsys.readouterr().err == "\r1 of 2 puzzles\r2 of 2 puzzles\n"


def test_an_existing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        cli.main(["sudoku", "--size", "4", "--out", str(tmp_path)])
