"""Exceptions of embfast. Invalid arguments raise ValueError, TypeError or KeyError instead."""


class FormatError(ValueError):
    """A file cannot be parsed. The message names the file, the position, and expected and actual content."""


class TrainingError(RuntimeError):
    """Training cannot continue. The message gives the reason and what to change."""
