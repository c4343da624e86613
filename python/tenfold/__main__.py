"""`python -m tenfold`: the command line without the installed script."""

import sys

from tenfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
