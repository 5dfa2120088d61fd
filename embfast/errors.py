"""The two errors of our own; bad arguments raise ValueError, TypeError or KeyError."""


class FormatError(ValueError):
    """A file does not parse: the message names the file, the place, what was expected and what came."""


class TrainingError(RuntimeError):
    """A training run cannot go on: the message says why and what to change."""
