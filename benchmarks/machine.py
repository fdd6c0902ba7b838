"""What the figures were measured on."""

import os
import platform
from pathlib import Path

import jax


def describe() -> str:
    """Processor, device and versions, as one line."""
    devices = jax.devices()
    return (
        f"{os.cpu_count()} CPUs ({_processor()}), jax {jax.__version__} on {devices[0].platform} "
        f"({len(devices)} x {devices[0].device_kind}), Python {platform.python_version()}, "
        f"{platform.system()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
