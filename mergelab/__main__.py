"""``python -m mergelab``: the command line."""

from mergelab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
