"""``twin compare``: a routed model in one table with what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RoutingError, suggest
from .common import Line, device, positive


def add(compare: Any) -> None:
    """Declare the arguments."""
    from ..routing.presets import HEADS

    compare.add_argument("folder", metavar="DIR", help="the routed model")
    compare.add_argument("--suite", default="starter", metavar="SUITE", help="default: starter")
    compare.add_argument("--only", metavar="A,B", help="only these baselines, by name (default: all)")
    compare.add_argument("--head", choices=HEADS, default="router_argmax", help="default: router_argmax")
    compare.add_argument("--limit", type=positive, default=40, metavar="N", help="at most N items a task (default: 40)")
    device(compare)
    compare.add_argument("--json", action="store_true", help="print the rows as JSON")
    compare.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Measure every baseline with the routed model's own router, rank and heads."""
    from ..models import build
    from ..routing import load_routed
    from ..routing.baseline import row
    from ..routing.baselines import BASELINES, baseline
    from ..routing.material import Material

    routed = load_routed(arguments.folder)
    material = Material.of(routed, arguments.suite, device=arguments.device)
    names = _names(arguments.only, [n for n in BASELINES if n != "soft_adapters"])
    model = build(dict(routed.shared), config=routed.config, preprocessor=routed.preprocessor,
                  device=arguments.device, copy=False)  # fmt: skip
    line = Line()
    rows: list[dict[str, Any]] = []
    for name in names:
        line(len(rows), len(names), f"measuring {name}")
        made = baseline(name, material)
        found = made.evaluate(arguments.suite, head=arguments.head, limit=arguments.limit, unseen=False,
                              runner=made.runner(model))  # fmt: skip
        rows.append(row(made, found))
    line.end()
    print(json.dumps(rows, indent=2) if arguments.json else _table(rows))
    return 0


def _names(only: str | None, known: Sequence[str]) -> list[str]:
    if not only:
        return list(known)
    asked = [name.strip() for name in only.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise RoutingError(f"There is no baseline {name[:60]!r}.{suggest(name, known)}")
    return asked


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text, per cent; the last column says which data a row used."""
    width = max(len(row["title"]) for row in rows)
    out = [
        f"{'model':<{width}}  {'acc. %':>6}  {'of expert %':>11}  {'router %':>8}  {'MB':>7}  {'s/1000':>7}  data used"
    ]
    for row in rows:
        numbers = (_percent(row["accuracy"], 6), _percent(row["normalised"], 11), _percent(row["router"], 8))
        said = row["data_used"] + ("; told the task of every input" if row["needs_task_id"] else "")
        out.append(f"{row['title']:<{width}}  {'  '.join(numbers)}  {row['bytes'] / 1e6:>7.1f}  "
                   f"{row['seconds_per_1000']:>7.1f}  {said}")  # fmt: skip
    out.append(f"head: {rows[0]['head']}; accuracy is the mean over tasks; MB is all that is stored")
    return "\n".join(out)


def _percent(value: float | None, width: int) -> str:
    return f"{100 * value:{width}.1f}" if value is not None else f"{'–':>{width}}"
