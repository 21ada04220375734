"""Examine an installation: versions, where the sibling packages resolve, GPUs, the C++ compiler.

An installed distribution with a top-level ``training`` or ``evaluation`` would win over ours; ``pgolf`` refuses to be
imported then (see ``siblings``), and a door started as a file is immune.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil

import torch

from .siblings import SIBLINGS, check_siblings, package_folder
from .workdir import PACKAGES

NO_GPU = "none: small models only, with --training.precision fp32 --training.no-compile"


def examine() -> None:
    """Print the table."""
    print(f"python       {platform.python_version()}")
    for name in PACKAGES:
        print(f"{name:<12} {importlib.metadata.version(name)}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"gpus         {', '.join(gpus) or NO_GPU}")
    print(f"compiler     {shutil.which('c++') or 'none: torch.compile needs one'}")
    for name in SIBLINGS:
        print(f"{name:<15} {package_folder(name)}")
    check_siblings()
    print("all sibling packages are ours")
