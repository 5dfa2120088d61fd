"""What a reader passes over, counted; and the error that names file, place, expected and got."""

import warnings

from embfast.errors import FormatError

ERRORS = ("strict", "replace", "skip")


class Faults:
    """What to do about a fault in a file: raise, or count it and go on."""

    def __init__(self, path: str, errors: str):
        self.path = path
        self.errors = errors
        self.count = 0
        self.first = ""

    def add(self, message: str, *, replaceable: bool = False) -> None:
        """Raises FormatError unless the policy passes over this fault. `message` begins with its place."""
        message = f"{self.path}:{message}"
        if self.errors == "strict" or (self.errors == "replace" and not replaceable):
            raise FormatError(message)
        self.count += 1
        self.first = self.first or message

    def warn(self) -> None:
        if self.count:
            did = "replaced or left out" if self.errors == "replace" else "left out"
            warnings.warn(f"{did} {self.count} faults; the first: {self.first}", stacklevel=4)
