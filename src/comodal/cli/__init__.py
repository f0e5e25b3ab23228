"""The command line: `comodal COMMAND ...`."""

from comodal.cli.program import main

__all__ = ["main"]
