"""The command line as `python -m purerun`."""

from __future__ import annotations

from purerun.cli import main

if __name__ == "__main__":
    main()
