"""Measurements that need a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


def measure(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this package in a new interpreter; it prints one line of JSON.

    Programs compiled by an earlier process are not used again.
    """
    environment = {key: x for key, x in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])
