"""The one entry point: ``python launch.py task=sae 'layer=range(0,4)'``; ``--help`` for the rest."""

import sys

from circuits.launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
