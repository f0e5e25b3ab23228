"""`openl3.openl3_warnings`: the warning class of OpenL3's functions."""


class OpenL3Warning(Warning):
    """Warnings of OpenL3's functions: audio or images of zeros, audio shorter than a window."""
