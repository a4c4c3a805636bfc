"""What the Models tab shows: the bench, the pre-flight verdict, what the Hub knows."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from . import views

LEVELS = {"ok": ("green", "fits"), "warn": ("amber", "mind"), "error": ("red", "cannot run")}


def card(selection: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """What is on the bench now."""
    body = [
        [html.escape(name), html.escape(titles.get(name, "–")), f"<code>{html.escape(_shown(source))}</code>"]
        for name, source in selection["experts"].items()
    ]
    body.insert(0, ["base", "–", f"<code>{html.escape(_shown(selection['base']))}</code>"])
    caption = f"On the bench: {selection['title']}"
    return views.table(["Checkpoint", "Task", "Source"], body, caption, words=True)


def _shown(source: str) -> str:
    """A source for reading: a commit shortened."""
    repo, mark, commit = source.partition("@")
    return f"{repo}@{commit[:10]}" if mark and len(commit) >= 40 else source


def findings(report: Mapping[str, Any]) -> str:
    """The pre-flight verdict: each finding with a colour, a word and the cure."""
    items = []
    for item in report["findings"]:
        color, word = LEVELS.get(item["level"], LEVELS["warn"])
        fix = f' <span class="ml-fix">{html.escape(item["fix"])}</span>' if item.get("fix") else ""
        items.append(f'<li class="ml-{color}"><b>{word}</b> {html.escape(item["text"])}{fix}</li>')
    inner = f"<h2>Pre-flight check</h2><ul>{''.join(items)}</ul>"
    return f'<section class="ml-verdict" aria-label="Pre-flight check">{inner}</section>'


def plain(model: Any) -> dict[str, Any]:
    """A Hub model as plain values for a visitor's state."""
    keys = (
        "repo",
        "revision",
        "base",
        "relation",
        "license",
        "dtype",
        "parameters",
        "bytes",
        "downloads",
        "likes",
        "gated",
    )
    return {**{key: getattr(model, key, None) for key in keys}, "source": model.source}


def hub_table(models: list[dict[str, Any]]) -> str:
    body = [
        [
            html.escape(m["repo"]) + (' <span class="ml-tag">gated</span>' if m["gated"] else ""),
            html.escape(m["relation"] or "–"), size(m["bytes"]), html.escape(m["dtype"] or "–"),
            html.escape(m["license"] or "not said"), f"<code>{html.escape((m['revision'] or '–')[:10])}</code>",
            f"{m['downloads'] or 0:,}", f"{m['likes'] or 0:,}",
        ]
        for m in models
    ]  # fmt: skip
    head = ["Repository", "Relation", "Size", "Dtype", "Licence", "Commit", "Downloads", "Likes"]
    return views.table(head, body, f"{len(models)} checkpoints, most downloaded first", words=True)


def inside_card(model: Any) -> str:
    """What a checkpoint holds, from its headers."""
    infos = list(model.infos.values())
    text = (
        f"{model.repo} at {model.revision[:10]}: {len(infos)} tensors, {size(model.bytes)}, "
        f"{model.dtype or 'mixed dtypes'}, licence {model.license or 'not said'}. No weights were downloaded."
    )
    body = [
        [f"<code>{html.escape(i.name)}</code>", i.dtype, " × ".join(map(str, i.shape)) or "scalar"] for i in infos[:12]
    ]
    more = views.note(f"… and {len(infos) - 12} more tensors.") if len(infos) > 12 else ""
    return views.note(text) + views.table(["Tensor", "Dtype", "Shape"], body, "The first tensors", words=True) + more


def basket_list(wanted: list[dict[str, str]]) -> str:
    items = "".join(f"<li><code>{html.escape(_shown(item['source']))}</code></li>" for item in wanted)
    head = '<h2 class="ml-heading">Experts to merge</h2>'
    return f'<section aria-label="Experts to merge">{head}<ol class="ml-list">{items}</ol></section>'


def size(count: int | None) -> str:
    """Bytes for reading."""
    if not count:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
