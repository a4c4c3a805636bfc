"""The claims of Twin-Merging, measured: ``python tests/benchmarks/twin_claims.py --zoo FOLDER… --out FILE.json``.

One zoo with several ``--seeds`` (of routers, drawn experts and orders), or one zoo for each seed (whose experts were
then trained anew). The file is written after every measurement. ``--report FILE.json… --markdown docs/claims.md`` makes
the table: what the paper says, what was seen, whether it holds, and why. ``--only NAME…`` measures some things only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import claims_measures as measures  # noqa: E402
import torch  # noqa: E402
from claims_lab import Lab, zoo_key  # noqa: E402

FORMAT = "mergelab-claims/1"
NAMES = ("headline", "gates", "ranks", "sparsity", "tasks", "router_data", "unseen", "stream", "groups", "times",
         "anchors", "corrupted")  # fmt: skip


def held_out(names: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Two experts to leave out of a zoo that has no unseen task, others for every seed."""
    half = len(names) // 2
    return names[seed % half], names[seed % half + half]


def one_run(  # noqa: PLR0917
    folder: str, seed: int, limit: int, only: list[str], shelf: dict[Any, Any], note: Any
) -> dict[str, Any]:
    lab = Lab(folder, seed, limit, (), shelf)
    bench = measures.Bench(lab)
    found: dict[str, Any] = {"zoo": lab.zoo.name, "tune": lab.zoo.tune, "seed": seed, "limit": limit, "measures": {},
                             "experts": list(lab.names), "seconds": {}}  # fmt: skip
    for name in only:
        started = time.perf_counter()
        if name == "unseen":
            free = tuple(t.name for t in lab.suite if not t.seen)
            inner = bench
            if not free:
                free = held_out(lab.names, seed)
                rest = tuple(t for t in lab.names if t not in free)
                inner = measures.Bench(Lab(folder, seed, limit, rest, shelf))
            found["measures"][name] = measures.unseen(inner, free)
        else:
            found["measures"][name] = getattr(measures, name)(bench)
        found["seconds"][name] = round(time.perf_counter() - started, 1)
        note(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", nargs="+", default=["starter"], help="zoos, by name or folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=60, help="test items a task")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--report", nargs="+", type=Path, help="JSON files to make the table of")
    parser.add_argument("--markdown", type=Path, help="where the table goes (default: the screen)")
    told = parser.parse_args()
    if told.report:
        from claims_page import put
        from claims_report import report

        put("twin", report([json.loads(p.read_text(encoding="utf-8")) for p in told.report]), told.markdown)
        return
    pairs = (
        [(told.zoo[0], s) for s in told.seeds] if len(told.zoo) == 1 else list(zip(told.zoo, told.seeds, strict=False))
    )
    kept: dict[str, Any] = {
        "format": FORMAT,
        "command": f"python tests/benchmarks/twin_claims.py --zoo {' '.join(zoo_key(z) for z in told.zoo)} --seeds "
        f"{' '.join(map(str, told.seeds))} --limit {told.limit}",
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
                    "torch": torch.__version__, "python": platform.python_version()},
        "runs": [],
    }  # fmt: skip
    shelves: dict[str, dict[Any, Any]] = {}
    for folder, seed in pairs:
        if folder not in shelves:
            shelves.clear()  # a zoo at a time in memory
        shelf = shelves.setdefault(folder, {})

        def note(found: dict[str, Any], before: tuple[Any, ...] = tuple(kept["runs"])) -> None:
            kept["runs"] = [*before, found]
            if told.out:
                told.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            last = list(found["seconds"].items())[-1]
            sys.stderr.write(f"{found['zoo']} seed {found['seed']}: {last[0]} in {last[1]} s\n")

        one_run(folder, seed, told.limit, told.only, shelf, note)
    if not told.out:
        sys.stdout.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
