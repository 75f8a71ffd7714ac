"""The machine, and the versions of what ran on it."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("duckdb", "ibis-framework", "deltalake", "pyarrow", "numpy", "pandas", "polars", "pyspark")


def machine() -> dict[str, str]:
    """Describe the machine: cores, processor, memory and versions, each where it is known."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "memory": f"{memory_bytes / 1e9:.0f} GB",
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "java": _java(),
    }
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _java() -> str:
    if not shutil.which("java"):
        return ""
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    return told.split('"')[1] if '"' in told else ""
