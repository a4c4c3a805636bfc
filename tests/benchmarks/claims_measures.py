"""What ``twin_claims.py`` measures. Every function takes a bench and returns plain data; none knows what to expect."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from claims_lab import P90, Items, Lab, mean, paired, plain, run, score
from torch import Tensor

from mergelab.routing.baselines import Material, baseline
from mergelab.routing.compression import Compression
from mergelab.routing.gate import Gate, one_hot
from mergelab.routing.modes import GroupSettings
from mergelab.routing.parts import Dense
from mergelab.routing.routed import RoutedModel
from mergelab.routing.routers import Router
from mergelab.tasks.corrupt import Corruption, corruptions

SHARED = "task_arithmetic"
STATIC = ("linear", "task_arithmetic", "ties", "dare_linear", "tsv_m")
SIZES = (10, 50, 100, None)
GROUPS = (1, 3, 10)


@dataclass(eq=False)
class Bench:
    """The routed model that the rest is compared with: Twin-Merging at a tenth of the rank, soft weights."""

    lab: Lab
    tag: str = SHARED  # what its shared model is kept under

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        return self.lab.merged(SHARED)

    @cached_property
    def found(self) -> Tensor:
        """The shared model's features of the test items."""
        return self.lab.features(self.shared, self.lab.items.images, ("test", self.tag, self.lab.names))

    @cached_property
    def router(self) -> Router:
        return self.lab.router(self.shared, (self.tag, self.lab.names))

    @cached_property
    def rows(self) -> Tensor:
        return Gate().weights(self.router.logits(self.found))

    @property
    def guess(self) -> Tensor:
        return self.rows.argmax(1)

    @cached_property
    def twin(self) -> RoutedModel:
        parts = self.lab.parts(self.shared, self.tag, P90)
        return self.lab.routed(self.shared, parts, self.router)

    @cached_property
    def best(self) -> dict[str, Any]:
        return self.scored(run(self.lab, self.twin, self.lab.items.images, self.rows).features)

    def scored(self, features: Tensor, guess: Tensor | None = None, shown: Items | None = None) -> dict[str, Any]:
        return score(self.lab, features, self.guess if guess is None else guess, shown)

    def at(self, routed: RoutedModel, rows: Tensor | None = None, mode: str = "adapter") -> dict[str, Any]:
        rows = self.rows if rows is None else rows
        return self.scored(run(self.lab, routed, self.lab.items.images, rows, mode).features)

    def top1(self) -> Tensor:
        return one_hot(self.guess, len(self.lab.names))


def headline(b: Bench) -> dict[str, Any]:
    """Static merges, Twin, its upper bounds; every head policy; paired differences. (C1, C2, K6, K7, duplicates.)"""
    lab, shown = b.lab, b.lab.items
    static = {"pretrained": b.scored(lab.features(lab.base, shown.images, ("test", "base", lab.names)))}
    for method in STATIC:
        if method in lab.zoo.tuned or method == "linear":
            state = lab.merged(method)
            static[method] = b.scored(lab.features(state, shown.images, ("test", method, lab.names)))
    oracle = b.scored(run(lab, b.twin, shown.images, one_hot(shown.owner, len(lab.names))).features)
    top = max((m for m in static if m != "pretrained"), key=lambda m: static[m]["accuracy"]["router_argmax"])
    right = b.best["correct"]
    return {
        "static": {m: plain(s) for m, s in static.items()},
        "twin": plain(b.best),
        "oracle_top1": plain(oracle),
        "best_static": top,
        "twin_minus_best_static": paired(shown, right["router_argmax"], static[top]["correct"]["router_argmax"]),
        "twin_minus_best_static_oracle_head": paired(shown, right["oracle"], static[top]["correct"]["oracle"]),
        "twin_minus_expert_oracle_head": paired(shown, right["oracle"], shown.expert),
        "twin_minus_oracle_top1": paired(shown, right["router_argmax"], oracle["correct"]["oracle"]),
        "expert": mean(shown, shown.expert),
        "confusion": {n: {m: float((b.guess[shown.owner == t] == u).float().mean()) for u, m in enumerate(lab.names)}
                      for t, n in enumerate(lab.names)},
        "cosine": cosine(lab),
    }  # fmt: skip


def cosine(lab: Lab) -> dict[str, dict[str, float]]:
    """Between task vectors: how much the experts share."""
    flat = {t: torch.cat([(e[n].float() - lab.base[n].float()).flatten() for n in lab.base if n in e])
            for t, e in lab.experts.items()}  # fmt: skip
    norm = {t: float(v.norm()) for t, v in flat.items()}
    return {s: {t: float(flat[s] @ flat[t]) / (norm[s] * norm[t]) for t in flat if t != s} for s in flat}


def ranks(b: Bench) -> dict[str, Any]:
    """Twin (B) and base + dynamic (A) by rank, for the same weights, and A with a router of its own. (C3, K1.)"""
    lab, images = b.lab, b.lab.items.images
    side = min(min(t.shape) for n, t in lab.base.items() if t.ndim == 2 and "mlp" in n)
    levels = {"50 %": side // 2 - 1, "10 %": side // 10, "5 %": side // 20, "4": 4, "1": 1}
    top = Compression(rank=levels["50 %"])
    anchors = {"B": (b.shared, b.tag), "A": (lab.base, "base")}
    out: dict[str, Any] = {"side": side, "levels": levels, "B": {}, "A": {}, "A_own": {}, "bytes": {}, "gap": {}}
    base_found = lab.features(lab.base, images, ("test", "base", lab.names))
    own = Gate().weights(lab.router(lab.base, ("base", lab.names)).logits(base_found))
    kept: dict[str, Any] = {}
    for anchor, (state, key) in anchors.items():
        whole = lab.routed(state, lab.parts(state, key, top), None)
        for level, rank in levels.items():
            cut = whole.at_rank(rank)
            found = kept[anchor, level] = b.at(cut)
            out[anchor][level] = plain(found)
            if anchor == "B":
                out["bytes"][level] = cut.bytes()["exclusive"]
            elif level in ("10 %", "4", "1"):
                features = run(lab, cut, images, own).features
                out["A_own"][level] = plain(b.scored(features, own.argmax(1)))
    full = {t: {n: Dense(e[n].float() - lab.base[n].float()) for n in lab.base} for t, e in lab.experts.items()}
    out["full"] = plain(b.at(lab.routed({n: t.float() for n, t in lab.base.items()}, full, None)))
    for level in levels:
        one, two = (kept[a, level]["correct"]["router_argmax"] for a in ("B", "A"))
        out["gap"][level] = paired(lab.items, one, two)
    return out


def anchors(b: Bench) -> dict[str, Any]:
    """Other shared models at a tenth of the rank and at rank 4, for the same weights. (K2; the random expert.)"""
    lab, out = b.lab, {}
    made: dict[str, Mapping[str, Tensor]] = {m: lab.merged(m) for m in ("linear", "ties", "tsv_m") if
                                             m in lab.zoo.tuned or m == "linear"}  # fmt: skip
    generator = torch.Generator().manual_seed(lab.seed)
    chosen = lab.names[int(torch.randint(len(lab.names), (1,), generator=generator))]
    made["random expert"] = lab.experts[chosen]
    for name, state in made.items():
        key = ("expert", chosen) if name == "random expert" else name
        routed = lab.routed(state, lab.parts(state, key, P90), None)
        out[name] = {"10 %": plain(b.at(routed)), "4": plain(b.at(routed.at_rank(4)))}
    out["task_arithmetic"] = {"10 %": plain(b.best), "4": plain(b.at(b.twin.at_rank(4)))}
    return {"anchors": out, "expert": chosen}


def sparsity(b: Bench) -> dict[str, Any]:
    """Kinds of compression under the router's first choice, at equal density and at equal bytes. (C4.)"""
    lab = b.lab
    m = Material(b.twin, lab.base, lab.experts, P90)
    out: dict[str, Any] = {"svd": plain(b.at(b.twin, b.top1())) | {"bytes": b.twin.bytes()["exclusive"]}}
    for level in (4,):
        low = b.twin.at_rank(level)
        out[f"svd rank {level}"] = plain(b.at(low, b.top1())) | {"bytes": low.bytes()["exclusive"]}
    for kind in ("magnitude", "bernoulli"):
        for match, form in (("density", "places"), ("bytes", "places"), ("bytes", "bitmap")):
            made = baseline(kind, m, match=match, form=form)
            found = plain(b.at(made.routed, b.top1(), "group"))
            out[f"{kind} {match} {form}"] = found | {"bytes": made.bytes["exclusive"], **made.settings}
        low = Material(b.twin.at_rank(4), lab.base, lab.experts, Compression(rank=4))
        made = baseline(kind, low, match="bytes", form="places")
        out[f"{kind} as rank 4"] = plain(b.at(made.routed, b.top1(), "group")) | {"bytes": made.bytes["exclusive"]}
    return out


def tasks(b: Bench) -> dict[str, Any]:
    """2 to 8 tasks, in an order drawn by the seed: task arithmetic (tuned and fixed sum), average, Twin. (C5.)"""
    lab, out = b.lab, {}
    order = [lab.names[i] for i in torch.randperm(len(lab.names), generator=torch.Generator().manual_seed(lab.seed))]
    tuned = float(lab.zoo.tuned.get(SHARED, {}).get("lambda", 0.3))
    for count in [c for c in (2, 4, 6, 8) if c <= len(order)]:
        small = Lab(lab.folder, lab.seed, lab.limit, tuple(t for t in lab.names if t in order[:count]), lab.shelf)
        inner = Bench(small, f"{SHARED}, same sum")
        whole = count == len(lab.names)
        inner.shared = b.shared if whole else small.merged(SHARED, **{"lambda": tuned * len(order) / count})
        if whole:
            inner = b
        average = small.features(small.merged("linear"), small.items.images, ("test", "linear", small.names))
        fixed = small.features(small.merged(SHARED), small.items.images, ("test", "fixed", small.names))
        parts = inner.twin.bytes()
        out[str(count)] = {
            "tasks": list(small.names),
            "average": plain(inner.scored(average)),
            "task_arithmetic": plain(inner.scored(fixed)),
            "task_arithmetic_same_sum": plain(inner.scored(inner.found)),
            "twin": plain(inner.best),
            "exclusive_bytes": parts["exclusive"],
            "shared_bytes": parts["shared"],
        }
    return out


def router_data(b: Bench) -> dict[str, Any]:
    """How many items a task the router learns from: of validation, and 1,000 that the experts were trained on. (C8.)"""
    lab, out = b.lab, {}
    jobs = [(size, "val") for size in SIZES] + [(1000, "train")]
    for size, split in jobs:
        used = b.router if (size, split) == (None, "val") else lab.router(
            b.shared, (b.tag, lab.names), per_task=size, split=split)  # fmt: skip
        rows = Gate().weights(used.logits(b.found))
        found = run(lab, b.twin, lab.items.images, rows).features
        counts = used.about().get("counts") or {}
        name = "all" if size is None else str(size)
        out[f"{name} ({split})"] = plain(b.scored(found, rows.argmax(1))) | {"items": min(counts.values(), default=0)}
    return out


def unseen(b: Bench, missing: tuple[str, ...]) -> dict[str, Any]:
    """Tasks without an expert, by class means of each model's own features (told the task). (K3, K4.)"""
    lab, out = b.lab, {}
    states: dict[str, Mapping[str, Tensor]] = {"pretrained": lab.base, "task_arithmetic": b.shared,
                                               "average": lab.merged("linear")}  # fmt: skip
    if "tsv_m" in lab.zoo.tuned:
        states["tsv_m"] = lab.merged("tsv_m")
    for task in missing:
        sets = lab.unseen(task)
        images = torch.cat([sets["images"], sets["support"]])
        right = {n: lab.class_means(task, sets, lab.features(s, images)) for n, s in states.items()}
        rows = Gate().weights(b.router.logits(lab.features(b.shared, images)))
        right["twin"] = lab.class_means(task, sets, run(lab, b.twin, images, rows).features)
        first = one_hot(rows.argmax(1), len(lab.names))
        right["twin top-1"] = lab.class_means(task, sets, run(lab, b.twin, images, first).features)
        shown = Items((task,), sets["images"], torch.zeros_like(sets["truth"]), sets["truth"], sets["truth"] >= 0)
        test = rows[: len(sets["truth"])]
        out[task] = {
            "accuracy": {n: float(r.float().mean()) for n, r in right.items()},
            "twin_minus": {n: paired(shown, right["twin"], r) for n, r in right.items() if n != "twin"},
            "weights": dict(zip(lab.names, test.mean(0).tolist(), strict=True)),
            "confidence": float(test.max(1).values.mean()),
        }
    return {"experts": list(lab.names), "tasks": out}


def stream(b: Bench) -> dict[str, Any]:
    """A mixed stream against one sorted by task, with weights per input and with one mixture a batch of 64. (C9.)"""
    lab, out = b.lab, {}
    count = len(lab.items.owner)
    orders = {"sorted": lab.items.owner.argsort(stable=True),
              "mixed": torch.randperm(count, generator=torch.Generator().manual_seed(lab.seed))}  # fmt: skip
    for name, order in orders.items():
        shown, rows = lab.items.of(order), b.rows[order]
        batch = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in rows.split(64)])
        each = run(lab, b.twin, shown.images, rows).features
        one = run(lab, b.twin, shown.images, batch).features
        guess = b.guess[order]
        out[name] = {"per input": plain(b.scored(each, guess, shown)), "per batch": plain(b.scored(one, guess, shown))}
    return out


def corrupted(b: Bench) -> dict[str, Any]:
    """Twin, its first choice, and two static merges on spoilt pictures; the router's accuracy. (K3, K5.)"""
    lab, out = b.lab, {}
    kept = lab.items.few(max(1, lab.limit // 3))
    clean = lab.items.of(kept)
    other = "tsv_m" if "tsv_m" in lab.zoo.tuned else "linear"

    def measured(shown: Items) -> dict[str, Any]:
        found = lab.features(b.shared, shown.images)
        rows = Gate().weights(b.router.logits(found))
        guess = rows.argmax(1)
        twin = run(lab, b.twin, shown.images, rows).features
        first = run(lab, b.twin, shown.images, one_hot(guess, len(lab.names))).features
        still = lab.features(lab.merged(other), shown.images)
        named = {"twin": twin, "twin top-1": first, "task_arithmetic": found, other: still}
        return {n: plain(b.scored(f, guess, shown)) for n, f in named.items()}

    out["clean"] = measured(clean)
    for name in corruptions():
        for severity in (1, 2, 3):
            spoil = Corruption(name, severity, lab.seed)
            shown = Items(clean.names, spoil(clean.images), clean.owner, clean.truth, clean.expert)
            out[f"{name} {severity}"] = measured(shown)
    return {"conditions": out, "other": other}


def groups(b: Bench) -> dict[str, Any]:
    """Group-wise inference by clusters a bin, beside a merge for each input (as one batched pass), timed. (C6.)"""
    lab, out = b.lab, {"per input": plain(b.best)}
    for count in GROUPS:
        started = time.perf_counter()
        ran = run(lab, b.twin, lab.items.images, b.rows, "group", grouping=GroupSettings(per_bin=count))
        seconds = time.perf_counter() - started
        out[str(count)] = plain(b.scored(ran.features)) | {"merges": ran.merges, "seconds": seconds}
    return out


def gates(b: Bench) -> dict[str, Any]:
    """Soft weights, the two first choices, the first alone, and a sharper and a softer temperature. (K3.)"""
    out = {"soft": plain(b.best)}
    logits = b.router.logits(b.found)
    for name, gate in (("top-2", Gate(top_k=2)), ("top-1", Gate(top_k=1)), ("temperature 3", Gate(temperature=3.0))):
        out[name] = plain(b.at(b.twin, gate.weights(logits)))
    unsure = b.rows.max(1).values < 0.9
    out["unsure"] = {"share": float(unsure.float().mean())}
    return out


def times(b: Bench) -> dict[str, Any]:
    """Seconds for 64 mixed inputs end to end: features, router, merges and forward passes. Median of 3. (C7.)"""
    lab = b.lab
    chosen = torch.randperm(len(lab.items.owner), generator=torch.Generator().manual_seed(0))[:64]
    images = lab.items.images[chosen]
    out: dict[str, Any] = {"inputs": len(images), "rank": b.twin.rank, "seconds": {}}
    runner, low = lab.runner(b.twin), lab.runner(b.twin.at_rank(4))
    state = lab.model.prepare(b.shared)
    ways: dict[str, Any] = {
        "static": lambda: lab.model.encode(images, 64, weights=state),
        "adapter": lambda: runner.run(images, mode="adapter"),
        "adapter rank 4": lambda: low.run(images, mode="adapter"),
        "group 3 a bin": lambda: runner.run(images, mode="group", grouping=GroupSettings(per_bin=3)),
        "per_input": lambda: runner.run(images, mode="per_input"),
    }
    for name, way in ways.items():
        rounds = []
        for turn in range(1 if name == "per_input" else 4):
            started = time.perf_counter()
            way()
            if turn or name == "per_input":
                rounds.append(time.perf_counter() - started)
        out["seconds"][name] = sorted(rounds)[len(rounds) // 2]
    return out
