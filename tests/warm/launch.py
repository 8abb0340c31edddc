"""``launch.py`` as a process of its own, whose elements are forked from the template (``tests/warm/python``)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[0] = str(ROOT)
sys.argv[0] = str(ROOT / "launch.py")
sys.executable = str(HERE / "python")

from circuits.launch.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
