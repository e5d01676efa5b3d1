"""Puts stock SGLang for CPUs into the running Python's environment: what the tests here need.

    .venv/bin/python tests/serving/install.py [VERSION]

About 0.4 GB to fetch. SGLang's own requirements name CUDA's packages, so it is installed without
them, with the few that it imports (requirements.txt). The pins of constraints.txt stay as they
are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
VERSION = "0.5.21"
"""What CI tests; its torch is the one that constraints.txt pins."""


def main() -> None:
    """Install, and show that it can be imported."""
    version = sys.argv[1] if len(sys.argv) > 1 else VERSION
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    subprocess.run([*pip, "torchvision==0.28.0", f"sglang=={version}"], check=True)
    packages = Path(sysconfig.get_path("purelib"))
    for file in (HERE / "cpu").glob("*.py"):
        shutil.copy(file, packages)
    (packages / "mvspec_cpu_sglang.pth").write_text("import mvspec_cpu_sglang\n")
    code = "import sglang, importlib.metadata as m; print('sglang', m.version('sglang'))"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
