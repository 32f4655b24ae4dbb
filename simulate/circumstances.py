"""Under which circumstances figures came about: without them no two can be compared."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version


def circumstances() -> dict[str, str | int]:
    """The moment (UTC), the versions and the number of cores; never where."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dripline": version("dripline"),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
    }
