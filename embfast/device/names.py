"""The values of the setting `device`, which all models share."""

import re
from typing import Any


def check_device(name: Any) -> None:
    """ValueError unless name is "cpu", "cuda", "cuda:1" and so on, or "auto"."""
    if not isinstance(name, str) or not re.fullmatch(r"cpu|auto|cuda(:\d{1,3})?", name):
        raise ValueError(f'device must be "cpu", "cuda", "cuda:1" and so on, or "auto", got {name!r}')
