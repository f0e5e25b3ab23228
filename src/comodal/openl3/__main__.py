"""`python -m comodal.openl3`, in the place of the command `openl3`."""

from comodal.openl3.cli import main

main()
