"""`python -m comodal`."""

import sys

from comodal.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
