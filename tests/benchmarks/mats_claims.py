"""The claims of merging with a little data, measured: ``python tests/benchmarks/mats_claims.py --zoo FOLDER… --out F``.

One zoo with several ``--seeds`` (of the pictures drawn), or one zoo for each seed (whose experts were then trained
anew). The file is written after every measurement. ``--report FILE.json… --markdown docs/claims.md`` puts the tables
into that page. ``--only NAME…`` measures some things only; files of the same runs are joined by the report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import mats_measures as measures  # noqa: E402
import torch  # noqa: E402
from claims_lab import Lab  # noqa: E402
from mats_lab import Ground  # noqa: E402

FORMAT = "mergelab-data-claims/1"
NAMES = ("inits", "learned", "examples", "few_unlabelled", "path", "variants")


def one_run(folder: str, seed: int, told: argparse.Namespace, note: Any) -> dict[str, Any]:
    lab = Lab(folder, seed, told.limit, tuple(told.tasks))
    bench = measures.Bench(Ground(lab), told.inits, told.counts)
    found: dict[str, Any] = {"zoo": lab.zoo.name, "tune": lab.zoo.tune, "seed": seed, "limit": told.limit,
                             "some": told.tasks, "measures": {}, "experts": list(lab.names), "seconds": {}}  # fmt: skip
    for name in told.only:
        started = time.process_time()
        found["measures"][name] = getattr(measures, name)(bench)
        found["seconds"][name] = round(time.process_time() - started, 1)
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        note(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", nargs="+", default=["starter"], help="zoos, by name or folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=60, help="test items a task")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--tasks", nargs="+", default=[], help="only these experts of a zoo")
    parser.add_argument("--inits", nargs="+", choices=measures.INITS, default=list(measures.INITS))
    parser.add_argument("--counts", nargs="+", type=int, default=list(measures.COUNTS), help="examples a task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--report", nargs="+", type=Path, help="JSON files to make the tables of")
    parser.add_argument("--markdown", type=Path, help="the page whose part is replaced (default: the screen)")
    parser.add_argument("--figure", type=Path, help="a PNG of accuracy and J against iterations; needs matplotlib")
    told = parser.parse_args()
    if told.report:
        from claims_page import put
        from mats_figure import draw
        from mats_report import eight, grouped, report

        files = [json.loads(p.read_text(encoding="utf-8")) for p in told.report]
        put("data", report(files), told.markdown)
        if told.figure:
            draw(eight(grouped(files)), told.figure)
        return
    torch.set_num_threads(told.threads)
    pairs = (
        [(told.zoo[0], s) for s in told.seeds] if len(told.zoo) == 1 else list(zip(told.zoo, told.seeds, strict=False))
    )
    kept: dict[str, Any] = {
        "format": FORMAT,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
                    "torch": torch.__version__, "python": platform.python_version()},
        "runs": [],
    }  # fmt: skip
    for folder, seed in pairs:

        def note(found: dict[str, Any], before: tuple[Any, ...] = tuple(kept["runs"])) -> None:
            kept["runs"] = [*before, found]
            if told.out:
                told.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            last = list(found["seconds"].items())[-1]
            sys.stderr.write(f"{found['zoo']} seed {found['seed']}: {last[0]} in {last[1]} s of CPU\n")

        one_run(folder, seed, told, note)
    if not told.out:
        sys.stdout.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
