"""`openl3.openl3_exceptions`: the exception class of OpenL3's functions."""

from comodal.errors import ComodalError


class OpenL3Error(ComodalError):
    """Raised by OpenL3's functions: invalid arguments, unreadable files, missing weights."""
