"""Where a measurement took place: hardware, system and the versions that matter."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from labkit.profiles import available_cores
from labkit.runtime import cpu_features
from labkit.server.fetch import SERVER_VERSION

PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
    "tritonclient",
)


def environment_facts() -> dict[str, Any]:
    """Describe this machine, without anything that names it or its user."""
    return {
        "cpu": cpu_name(),
        "cpu_features": sorted(cpu_features()),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {
            "tritonserver": SERVER_VERSION,
            **{name: metadata.version(name) for name in PACKAGES if _installed(name)},
        },
    }


def _installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def cpu_name() -> str:
    """Return the CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
