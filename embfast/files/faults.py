"""Faults in files: a policy either raises a FormatError at the first one, or counts those it repairs or skips."""

import warnings

from embfast.errors import FormatError

ERRORS = ("strict", "replace", "skip")


class Faults:
    """Applies the policy `errors` ("strict", "replace" or "skip") to the faults in a file."""

    def __init__(self, path: str, errors: str) -> None:
        self.path = path
        self.errors = errors
        self.count = 0
        self.first = ""

    def add(self, message: str, *, replaceable: bool = False) -> None:
        """Raises FormatError, or counts the fault if the policy allows it. `message` starts with the place."""
        message = f"{self.path}:{message}"
        if self.errors == "strict" or (self.errors == "replace" and not replaceable):
            raise FormatError(message)
        self.count += 1
        self.first = self.first or message

    def warn(self) -> None:
        """Warns with the number of faults and the first of them, if any were counted."""
        if self.count:
            did = "replaced or dropped" if self.errors == "replace" else "dropped"
            warnings.warn(f"{did} {self.count} faults; the first: {self.first}", stacklevel=4)
