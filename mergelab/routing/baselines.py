"""What Twin-Merging is compared with, one line each, with the same router, rank and heads as a given routed model.

>>> material = Material.of(mergelab.twin("task_arithmetic", suite="starter", rank=8))
>>> options = [baseline(name, material) for name in BASELINES]
>>> rows = table(options, lambda b, head: b.evaluate("starter", head=head, limit=100))

Not here: WEMoE (Tang et al. 2024, arXiv 2402.00433), which trains one router for every MLP by minimising entropy on the
test inputs. That takes gradients through a merge per input and data that no other row sees. ``mlp_only`` has its form,
parts for the MLPs alone, under the same router as every other row.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import RoutingError, suggest
from .baseline import Baseline, Made, sizes, table
from .compression import Compression
from .masked import Masked, emr, tall
from .material import Material, entries_of, equal_bytes_density, item_size, matrices_of, rank_share
from .parts import Exclusive
from .routed import RoutedModel

__all__ = ["BASELINES", "Baseline", "Material", "baseline", "equal_bytes_density", "rank_share", "static", "table"]

_MLP = re.compile(r"\.(mlp|ffn|feed_forward|intermediate)\.|(?<!attention)\.output\.dense\.")


def baseline(name: str, material: Material, **options: Any) -> Baseline:
    """The baseline of this name (see :data:`BASELINES`); ``options`` are those of its function, by name. Those that
    take ``router`` accept ``same`` (the router and weights of ``material.routed``) and ``own`` (trained anew)."""
    if name not in BASELINES:
        raise RoutingError(f"There is no baseline {str(name)[:60]!r}.{suggest(str(name), BASELINES)}")
    known = [p for p in inspect.signature(BASELINES[name]).parameters if p not in ("m", "kind")]
    for option in options:
        if option not in known:
            raise RoutingError(f"The baseline {name!r} has no option {option[:60]!r}.{suggest(option, known)}")
    return BASELINES[name](material, **options)


# ---- what is shared is changed --------------------------------------------------------------------------------------


def shared_dynamic(m: Material) -> Baseline:
    """B, the paper's model."""
    return _row("shared_dynamic", "Twin: shared + exclusive, routed (B)", m, m.routed)


def base_dynamic(m: Material, router: str = "same") -> Baseline:
    """A: the pretrained model in the place of the shared one, v_t = τ_t at the same rank. It is also soft routing over
    rank-matched adapters on the base."""
    return _anchored("base_dynamic", "Base + exclusive, routed (A); soft adapters", m, m.base, router)


def random_expert(m: Material, seed: int = 0, router: str = "same") -> Baseline:
    """An expert, drawn by ``seed``, in the place of the shared model (Lu et al. 2024, table 6)."""
    chosen = random.Random(seed).choice(sorted(m.routed.names))
    return _anchored("random_expert", f"Expert {chosen} as shared + exclusive, routed", m, m.experts[chosen], router)


def top1_adapters(m: Material, router: str = "same") -> Baseline:
    """The router's first choice alone, among rank-matched adapters on the base."""
    return _gated("top1_adapters", "First choice among adapters on the base", base_dynamic(m, router), 1)


def topk_adapters(m: Material, k: int = 2, router: str = "same") -> Baseline:
    """The router's ``k`` first choices, among rank-matched adapters on the base."""
    return _gated("topk_adapters", f"First {k} choices among adapters on the base", base_dynamic(m, router), k)


def mlp_only(m: Material) -> Baseline:
    """Exclusive parts for the MLPs alone: WEMoE's form under the common router."""
    parts = {t: {n: p for n, p in of.items() if _MLP.search(f".{n}")} for t, of in m.routed.parts.items()}
    if not any(parts.values()):
        raise RoutingError("No tensor of this model has a name that says MLP, so there is nothing to keep of them.")
    return _row("mlp_only", "Twin, exclusive parts in MLPs only", m, replace(m.routed, parts=parts))


# ---- what is kept is changed ----------------------------------------------------------------------------------------


def sparse(
    m: Material, kind: str, match: str = "density", density: float | None = None, form: str = "places"
) -> Baseline:
    """Exclusive parts made sparse: ``magnitude`` or ``bernoulli``.

    match: ``density`` keeps the share of entries that the rank is of the full rank (the paper's equal "sparsity"),
    ``bytes`` as many entries as fit into the factors' bytes. form: how places are stored, which counts for bytes:
    ``places`` (an int32 each) or ``bitmap`` (a bit for every entry).
    """
    if match not in ("density", "bytes") or form not in ("places", "bitmap"):
        raise RoutingError(f"'match' is density or bytes and 'form' places or bitmap, not {match!r} and {form!r}.")
    if density is None:
        density = rank_share(m.routed) if match == "density" else equal_bytes_density(m.routed, form)
    given = m.compression
    compression = Compression(kind=kind, density=density, embeddings=given.embeddings, biases=given.biases,
                              dtype=given.dtype, seed=given.seed)  # fmt: skip
    routed = replace(m.routed, parts=m.parts(m.routed.shared, compression))
    size = routed.bytes()["exclusive"]
    if form == "bitmap":
        matrices, b = matrices_of(m.routed), item_size(m.routed)
        entries = sum(entries_of(p) for p in matrices)
        vectors = m.routed.bytes()["exclusive"] - sum(p.nbytes for p in matrices)
        size = vectors + round(entries * (density * b + 1 / 8))
    equal = "equal bytes" if match == "bytes" else "equal density"
    return replace(
        _row(kind, f"Twin with {kind} sparsity, {equal}, {form}", m, routed),
        bytes=sizes(routed, exclusive=size), settings={"density": density, "match": match, "form": form},
    )  # fmt: skip


def magnitude(m: Material, match: str = "density", density: float | None = None, form: str = "places") -> Baseline:
    """The largest entries of each exclusive part; see :func:`sparse`."""
    return sparse(m, "magnitude", match, density, form)


def bernoulli(m: Material, match: str = "density", density: float | None = None, form: str = "places") -> Baseline:
    """Entries at random, divided by their probability (DARE); see :func:`sparse`."""
    return sparse(m, "bernoulli", match, density, form)


def all_experts(m: Material) -> Baseline:
    """Every expert kept whole; the router's first choice answers."""
    parts: dict[str, dict[str, Any]] = {}
    for task, expert in m.experts.items():
        parts[task] = {
            n: Made(tuple(t.shape), expert[n].numel() * expert[n].element_size(), _difference(expert, t, n))
            for n, t in m.routed.shared.items()
            if t.is_floating_point() and n not in m.routed.aliases
        }
    routed = replace(m.routed, parts=parts, gate=replace(m.routed.gate, top_k=1, threshold=None))
    found = _row("all_experts", "All experts, learned first choice", m, routed, mode="group")
    return replace(found, note="Experts are counted whole, also those that were stored as adapters.")


def masks(m: Material, masked: Masked, *, data: str = "", router: str = "same") -> Baseline:
    """A masked model (see :mod:`.masked`); the router's first choice picks the mask."""
    parts: dict[str, dict[str, Any]] = {
        task: {n: Made(tuple(u.shape), -(-u.numel() // 8), _change(masked, task, n)) for n, u in masked.unified.items()}
        for task in m.routed.names
    }
    gate = replace(m.routed.gate, top_k=1, threshold=None)
    routed, guide = _routed_by(m, replace(m.routed, shared=m.plain(masked.base), parts=parts, gate=gate), router)
    size = masked.bytes()
    names = {"emr": "EMR masks, first choice", "tall": "TALL masks, first choice"}
    found = _row(masked.method, names[masked.method], m, routed, guide, mode="group")
    used = "; ".join(part for part in (found.data_used, data) if part)
    counted = sizes(routed, guide, exclusive=size["masks"] + size["scales"], unified=size["unified"])
    return replace(found, bytes=counted, data_used=used, settings=dict(masked.settings))


def emr_masks(m: Material, router: str = "same") -> Baseline:
    """EMR-Merging with the router's first choice for the task."""
    return masks(m, emr(m.plain(m.base), m.experts, aliases=m.routed.aliases), router=router)


def tall_masks(
    m: Material, lambdas: float | Mapping[str, float] = 0.4, chosen: str = "", router: str = "same"
) -> Baseline:
    """TALL masks with the router's first choice for the task. ``chosen``: the data that ``lambdas`` were chosen on."""
    built = tall(m.plain(m.base), m.experts, lambdas, aliases=m.routed.aliases)
    return masks(m, built, data=f"λ chosen on {chosen}" if chosen else "", router=router)


# ---- nothing is mixed, or not by the router -------------------------------------------------------------------------


def static(
    m: Material, state: Mapping[str, Tensor], name: str = "static", title: str = "Static merge", data: str = ""
) -> Baseline:
    """Any ordinary model in the experts' place; the router chooses the head, by the shared model's features."""
    same = state is m.routed.shared
    bare: dict[str, Exclusive] = {task: {} for task in m.routed.names}
    routed = replace(m.routed, shared=state if same else m.plain(state), parts=bare)
    found = _row(name, title, m, routed, None if same else m.routed, mode="static")
    return replace(found, data_used="; ".join(part for part in (found.data_used, data) if part))


def static_shared(m: Material) -> Baseline:
    """The shared model alone."""
    return static(m, m.routed.shared, "static_shared", "Shared model alone")


def pretrained(m: Material) -> Baseline:
    """The base alone."""
    return static(m, m.base, "pretrained", "Pretrained model alone")


def uniform(m: Material) -> Baseline:
    """All exclusive parts with the same weight, merged once."""
    count = len(m.routed.names)
    return static(m, m.routed.state([1 / count] * count), "uniform", "Twin, equal weights (static)")


def oracle_top1(m: Material) -> Baseline:
    """The true task's part alone: an upper bound of routing."""
    found = _row("oracle_top1", "Twin, true task's part (oracle)", m, replace(m.routed, router=None))
    return replace(found, weights="oracle", needs_task_id=True, data_used="task id at inference")


BASELINES: dict[str, Callable[..., Baseline]] = {
    "pretrained": pretrained,
    "static_shared": static_shared,
    "uniform": uniform,
    "base_dynamic": base_dynamic,
    "soft_adapters": base_dynamic,
    "shared_dynamic": shared_dynamic,
    "random_expert": random_expert,
    "top1_adapters": top1_adapters,
    "topk_adapters": topk_adapters,
    "mlp_only": mlp_only,
    "magnitude": magnitude,
    "bernoulli": bernoulli,
    "all_experts": all_experts,
    "emr": emr_masks,
    "tall": tall_masks,
    "oracle_top1": oracle_top1,
}


# ---- making rows ----------------------------------------------------------------------------------------------------


def _row(
    name: str, title: str, m: Material, routed: RoutedModel, guide: RoutedModel | None = None, *, mode: str = "adapter"
) -> Baseline:
    routed = replace(routed, early_router=None, early_layer=None, settings={"title": title, "data_used": m.data_used})
    return Baseline(name, title, routed, sizes(routed, guide), m.data_used, guide, mode=mode)


def _anchored(name: str, title: str, m: Material, anchor: Mapping[str, Tensor], router: str) -> Baseline:
    shared = m.plain(anchor)
    made = replace(m.routed, shared=shared, parts=m.parts(shared))
    routed, guide = _routed_by(m, made, router)
    return _row(name, title, m, routed, guide)


def _gated(name: str, title: str, found: Baseline, k: int) -> Baseline:
    gate = replace(found.routed.gate, top_k=k)
    routed = replace(found.routed, gate=gate, settings={**found.routed.settings, "title": title})
    return replace(found, name=name, title=title, routed=routed)


def _routed_by(m: Material, routed: RoutedModel, router: str) -> tuple[RoutedModel, RoutedModel | None]:
    """(``routed`` with its router, whose features that reads if not its own)."""
    if router == "same":
        return routed, m.routed
    if router != "own":
        raise RoutingError(f"'router' is 'same' or 'own', not {str(router)[:40]!r}.")
    if m.train is None:
        raise RoutingError("A router of its own has to be trained: give the material a function that does it (train=).")
    return replace(routed, router=m.train(replace(routed, router=None, early_router=None, early_layer=None))), None


def _difference(expert: Mapping[str, Tensor], shared: Tensor, name: str) -> Callable[[], Tensor]:
    return lambda: expert[name].float() - shared.float()


def _change(masked: Masked, task: str, name: str) -> Callable[[], Tensor]:
    return lambda: masked.change(task, name)
