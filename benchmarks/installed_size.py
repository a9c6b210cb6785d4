"""What `pip install distilhash` brings, in MB on disk: each package it needs, directly or through another.

python benchmarks/installed_size.py            # of the environment that runs it
"""

from __future__ import annotations

import re
from importlib import metadata

from packaging.requirements import Requirement


def needed(name: str, found: dict[str, int]) -> dict[str, int]:
    """The package and everything it requires without an extra, with its bytes on disk."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return found
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for another platform
        return found
    found[key] = sum(file.locate().stat().st_size for file in package.files or () if file.locate().is_file())
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)
    return found


def main() -> None:
    """Print the table, the largest first."""
    found = needed("distilhash", {})
    for name, size in sorted(found.items(), key=lambda item: -item[1]):
        if size > 1e6:
            print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{sum(found.values()) / 1e6:8.1f} MB  in all")


if __name__ == "__main__":
    main()
