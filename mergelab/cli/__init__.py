"""The command line: the dashboard's verbs for a terminal.

Exit status: 0 done; 1 a check says that the merge cannot run; 2 something was wrong, said in one sentence; 130 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from ..cores import share_cores
from ..errors import Cancelled, MergeLabError
from . import (
    calibrating,
    choosing,
    dashboard,
    looking,
    merging,
    statistics,
    surgery,
    theorem,
    training,
    training_look,
    twin,
    zoos,
)

_EPILOG = """\
a source is one of
  zoo:starter/base, zoo:starter/mnist   the base or an expert of a zoo that MergeLab knows
  PATH                                  a safetensors file, or a folder in the Hugging Face, OpenCLIP or PEFT layout
  hub:org/name[@revision]               a repository of the Hugging Face Hub

first steps
  python -m mergelab methods
  python -m mergelab check assets/recipes/ties.yaml
  python -m mergelab merge assets/recipes/ties.yaml --out merged
  python -m mergelab evaluate merged --suite starter
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = _parser().parse_args(argv)
    share_cores()
    try:
        return arguments.run(arguments)
    except Cancelled as error:
        print(f"mergelab: {error}", file=sys.stderr)
        return 130
    except MergeLabError as error:
        print(f"mergelab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mergelab methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mergelab: stopped; nothing half-written was left.", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"mergelab: {error.strerror or error}{where}.", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mergelab",
        description="Put fine-tuned checkpoints together and see what happened.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mergelab {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[Any], int], text: str, more: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=text, description=f"{text} {more}".strip(), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    for part in (merging, choosing, statistics, looking, surgery, calibrating, twin, training, training_look, theorem,
                 zoos):  # fmt: skip
        part.add(verb)
    dashboard.add(verb)
    return parser
