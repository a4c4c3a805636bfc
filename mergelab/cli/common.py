"""What several verbs share: options, the progress line, the table of an evaluation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..errors import MergeLabError

#: ``verb(name, run, text, more)`` adds a verb and gives its parser.
Verb: TypeAlias = Callable[..., argparse.ArgumentParser]


def device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def size_of(text: str) -> int:
    """``500MB`` -> 500000000; decimal units, as the Hub counts."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    for unit, factor in units.items():
        if text.upper().endswith(unit):
            try:
                value = int(float(text[: -len(unit)]) * factor)
            except ValueError:
                break
            if value > 0:
                return value
            break
    raise MergeLabError(f"--max-shard-size {text!r} is not a size; write it as 500MB or 5GB.")


class Line:
    """Progress as one line on a terminal's standard error, and nothing where there is no terminal."""

    def __init__(self) -> None:
        self.shown = 0.0
        self.live = sys.stderr.isatty()

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if self.live and (now - self.shown > 0.1 or done == total):
            self.shown = now
            print(f"\r\x1b[2K{done}/{total}  {text[:100]}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live and self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def evaluation_table(result: dict[str, Any], marks: Mapping[str, str] | None = None) -> str:
    """The contract of ``evaluate --json`` as aligned text, percent; ``marks`` end tasks' rows."""

    def percent(value: float | None) -> str:
        return "    –" if value is None else f"{100 * value:5.1f}"

    rows = [f"{'task':<14} {'items':>5}  {'acc. %':>6}  {'95 % interval':>15}  {'of expert %':>11}"]
    for name, task in result["tasks"].items():
        low, high = task["interval"]
        interval = f"{percent(low)} to {percent(high)}"
        mark = "" if task["seen"] else "  unseen"
        mark = f"  {marks[name]}" if marks and name in marks else mark
        row = f"{name:<14} {task['n']:>5}  {percent(task['accuracy']):>6}  {interval:>15}"
        rows.append(f"{row}  {percent(task['normalised']):>11}{mark}")
    for group in ("seen", "unseen"):
        if result[group]["accuracy"] is not None:
            mean = result[group]
            row = f"{'mean ' + group:<14} {'':>5}  {percent(mean['accuracy']):>6}  {'':>15}"
            rows.append(f"{row}  {percent(mean['normalised']):>11}")
    rows.append(f"{result['source']} on {result['suite']}; data used: {result['data_used']}; {result['seconds']:.1f} s")
    return "\n".join(rows)


def aligned(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Cells as text in columns, the first one to the left."""
    table = [list(head), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
