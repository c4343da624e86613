"""What `tenfold info` says."""

import subprocess
import sys

import pytest

from tenfold import __version__, _core, info


def test_report_says_what_the_build_is():
    text = info.report()
    for fact in (__version__, _core.compiler(), _core.isa(), "CUDA        no: this build has no CUDA code"):
        assert fact in text
    assert str(_core.threads()) in text


def test_an_absent_package_names_its_extra(monkeypatch):
    lines = [
        "torch<3,>=2.13; extra == 'train'",
        "absent>=1; extra == 'bench'",
        "numpy>=1",
        'tenfold[train]; extra == "all"',
    ]
    monkeypatch.setattr(info.metadata, "requires", lambda name: lines)
    text = info.report()
    assert "absent  missing; pip install 'tenfold[bench]' brings it" in text
    assert "packages    absent" in text


def test_info_needs_numpy_only():
    code = (
        "import sys; from tenfold import info; info.report();"
        "assert not {'torch', 'matplotlib', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["torch", "pytest"])
def test_installed_packages_have_versions(name):
    from importlib.metadata import version

    assert any(line.split()[-2:] == [name, version(name)] for line in info.report().splitlines())
