"""The door of the export stage: ``python quantization/export.py RECIPE [overrides]``.

Works from any directory, installed or not: the repository root, not this folder, comes first on the path, so that
the sibling packages are the ones beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from pgolf.run import door

    door("export", sys.argv[1:])
