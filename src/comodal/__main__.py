"""`python -m comodal`."""

import sys

from comodal.cli import main

if __name__ == "__main__":
    sys.exit(main())
