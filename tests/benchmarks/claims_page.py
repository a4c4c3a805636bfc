"""docs/claims.md has parts that different programs make; each replaces its own and leaves the others."""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: Parts in their order on the page.
PARTS = ("data", "ledger", "training", "twin")
HEAD = """# Claims, measured

What the papers say, what we saw, whether it holds, and why. Numbers and verdicts are worked out by the programs named
in each part from what they measured, never written by hand. [findings.md](findings.md) says what to make of them.
"""


def put(part: str, text: str, page: Path | None) -> None:
    """Put ``text`` (Markdown whose headings start at the first level) on the page as ``part``, one level down."""
    text = re.sub(r"^(#+ )", r"#\1", text.strip(), flags=re.MULTILINE)
    if page is None:
        sys.stdout.write(text + "\n")
        return
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = {name: _between(before, name) for name in PARTS}
    kept[part] = text
    blocks = [f"{_mark(name)}\n\n{kept[name]}\n\n{_mark(name, end=True)}" for name in PARTS if kept[name]]
    page.write_text("\n\n".join([HEAD.strip(), *blocks]) + "\n", encoding="utf-8")


def _between(page: str, name: str) -> str:
    start, end = page.find(_mark(name)), page.find(_mark(name, end=True))
    return page[start + len(_mark(name)) : end].strip() if 0 <= start < end else ""


def _mark(name: str, *, end: bool = False) -> str:
    return f"<!-- {'end of ' if end else ''}{name} -->"
