"""The virtual environment of RecBole."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from app.terminal.console import say

PINS = Path(__file__).parent / "requirements.txt"


def recbole_python(folder: Path) -> Path:
    """The interpreter of RecBole's environment, which is made below `folder` where there is none yet.

    Its packages are listed whole and installed without what they ask for: RecBole 1.2.1 asks for a Ray that
    there is not for this Python, and needs it for its own search alone.
    """
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    venv = folder / "recbole"
    stamp = venv / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        say("installing RecBole into an environment of its own")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(PINS)]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)
    return venv / "bin" / "python"
