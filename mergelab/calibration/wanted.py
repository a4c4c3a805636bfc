"""Which statistics of which tensors are taken, where, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ..errors import StatisticsError, suggest
from ..statistics import KINDS
from .sites import CONV, EMBEDDING, MAPS, Site, Sites
from .sums import Outer
from .taps import Factors, Fisher, Tap

#: Names of parameters, or a function that says yes to a name.
Names = Collection[str] | Callable[[str], bool]
#: The largest vector whose full block is taken unless told: 64 MB of float32.
BLOCK_LIMIT = 4096
#: Layers with more outputs (vocabularies) keep A only.
MAX_OUTPUTS = 8192


@dataclass(frozen=True)
class Options:
    """What to collect."""

    kinds: frozenset[str]
    names: Names | None = None
    conv: bool = False
    max_outputs: int = MAX_OUTPUTS
    block_limit: int = BLOCK_LIMIT
    #: Parameters that are left out, with the reason; but for kinds that no other parameter has.
    leave: Mapping[str, str] = field(default_factory=dict)

    @property
    def factors(self) -> bool:
        return bool(self.kinds & {"gram", "kfac"})

    @property
    def fisher(self) -> bool:
        """Whether gradients are needed at all."""
        return bool(self.kinds - {"gram"})


@dataclass(frozen=True)
class Findings:
    """``unused``: parameters that the outputs do not depend on; ``apart``: those whose gradient is not what their sites
    see, as they are also read elsewhere."""

    unused: Collection[str] = ()
    apart: Collection[str] = ()


@dataclass
class Wanted:
    """Where what is added up: factors and Fishers by tensor, taps by site, and the tensors left to ``rest``."""

    like: Tensor
    factors: dict[str, Factors] = field(default_factory=dict)
    fishers: dict[str, Fisher] = field(default_factory=dict)
    taps: dict[Site, Tap] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that at least one tensor will have."""
        found = {"gram": bool(self.factors), "kfac": any(f.outputs is not None for f in self.factors.values()),
                 "diag": any(f.diagonal is not None for f in self.fishers.values()),
                 "block": any(f.full is not None for f in self.fishers.values())}  # fmt: skip
        return frozenset(kind for kind, there in found.items() if there)


_FACTORS = (
    "A and B are never solved for apart, so load the adapter with its base (mergelab.load) and collect from the dense "
    "expert"
)


def is_factor(name: str) -> bool:
    """Whether a parameter is one of LoRA's two factors."""
    return any(f".{part}." in name for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"))


def kinds_of(kinds: Collection[str] | str) -> frozenset[str]:
    """Checked kinds of statistics."""
    given = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in given:
        if kind not in KINDS:
            raise StatisticsError(f"There is no kind of statistics {str(kind)[:60]!r}.{suggest(str(kind), KINDS)}")
    if not given:
        raise StatisticsError(f"Say which statistics to collect: some of {', '.join(KINDS)}.")
    return frozenset(given)


def chosen(module: nn.Module, names: Names | None) -> dict[str, nn.Parameter]:
    """The parameters that ``names`` select, in the module's order; tied ones under their first name."""
    known = dict(module.named_parameters())
    if names is None:
        return known
    if callable(names):
        picked = {name: p for name, p in known.items() if names(name)}
    else:
        for name in names:
            if name not in known:
                raise StatisticsError(f"The model has no parameter {str(name)[:120]!r}.{suggest(str(name), known)}")
        picked = {name: p for name, p in known.items() if name in set(names)}
    if not picked:
        raise StatisticsError("names= selects no parameter of the model.")
    return picked


def check_maps(options: Options, sites: Sites, picked: Collection[str]) -> None:
    """Refuse Grams and K-FAC of LoRA's factors, and where nothing asked for is a linear layer's weight."""
    if not options.factors:
        return
    factor = next((name for name in picked if is_factor(name)), None)
    if factor is not None and options.names is not None:
        raise StatisticsError(f"{factor!r} is a LoRA factor: {_FACTORS}.")
    if any(site.weight in picked for site in sites.all if site.kind in MAPS):
        return
    name = next((n for n in picked if "ia3" in n), next(iter(picked)))
    kind = "kfac" if "kfac" in options.kinds else "gram"
    what = "(IA)³ vectors" if "ia3" in name else "tensors that are no linear layer's weight"
    raise StatisticsError(
        f"{kind!r} was asked for {name!r}, which has no linear inputs of its own: take the kinds 'block' or 'diag' for "
        f"{what}."
    )


def decide(module: nn.Module, sites: Sites, options: Options, found: Findings, like: Tensor) -> Wanted:
    """What is added up where, after the probe. ``like``: a tensor of the sums' dtype and device."""
    picked = chosen(module, options.names)
    wanted = Wanted(like=like, skipped=dict(sites.skipped) if options.factors else {})
    fired: dict[str, list[Site]] = {}
    for site in sites.all:
        for name in site.tensors:
            if site.calls and name in picked:
                fired.setdefault(name, []).append(site)
    left = {name: parameter for name, parameter in picked.items() if name in options.leave}
    _add(sites, options, {name: p for name, p in picked.items() if name not in left}, fired, found, wanted)
    lacking = options.kinds - wanted.kinds
    if left and lacking:  # a method refuses statistics without its kind, even where it would weigh nothing
        _add(sites, replace(options, kinds=lacking), left, fired, found, wanted)
    for name in left:
        if name not in wanted.factors and name not in wanted.fishers:
            wanted.skipped[name] = options.leave[name]
    return wanted


def _add(  # noqa: PLR0917
    sites: Sites, options: Options, picked: Mapping[str, Tensor], fired: Mapping[str, list[Site]], found: Findings,
    wanted: Wanted,
) -> None:  # fmt: skip
    if options.factors:
        _factors(sites, options, picked, fired, wanted)
    if options.kinds & {"diag", "block"}:
        _fishers(options, picked, fired, found, wanted)


def _factors(
    sites: Sites, options: Options, picked: Mapping[str, Tensor], fired: Mapping[str, list[Site]], wanted: Wanted
) -> None:
    for site in sites.all:
        name = site.weight
        if site.kind not in MAPS or name not in picked or name is None:
            continue
        if is_factor(name):
            wanted.skipped[name] = f"a LoRA factor: {_FACTORS}"
            continue
        if site.kind == CONV and not options.conv:
            wanted.skipped.setdefault(name, "Grams of convolutions were not asked for (conv=True takes them)")
            continue
        uses = fired.get(name, [])
        reason = _unfit(site, uses)
        if reason:
            if not (uses and site not in uses):  # a form of attention that is not the one in use
                wanted.skipped[name] = reason
            continue
        if name not in wanted.factors:
            size, out = site.sizes
            made = Factors(Outer(size, like=wanted.like), wanted.like.new_zeros(size))
            if "kfac" in options.kinds:
                if site.dim is None:
                    wanted.skipped[name] = "its output gradient is left out: examples are not apart in it"
                elif out // site.parts > options.max_outputs:
                    wanted.skipped[name] = (
                        f"its output gradient is left out: {out // site.parts} outputs, more than max_outputs "
                        f"{options.max_outputs}"
                    )
                else:
                    made.outputs = Outer(out, site.parts, like=wanted.like)
            wanted.factors[name], wanted.layouts[name] = made, site.kind
        _tap(wanted, site).factors = wanted.factors[name]


def _unfit(site: Site, uses: list[Site]) -> str:
    """Why a linear layer has no factors; empty if it has."""
    if not uses:
        return "it was never called"
    if site.wrong:
        return site.wrong
    if any(use.kind == EMBEDDING for use in uses):
        return "it is tied to an embedding, and a Gram describes only one of its two uses"
    if any(use.part is not None for use in uses):
        return "its query, key and value inputs differ, and one Gram cannot describe them"
    if site not in uses:
        return "it was never called"
    return ""


def _fishers(
    options: Options, picked: Mapping[str, Tensor], fired: Mapping[str, list[Site]], found: Findings, wanted: Wanted
) -> None:
    for name, parameter in picked.items():
        if name in found.unused:
            wanted.skipped.setdefault(name, "the outputs do not depend on it")
            continue
        if not parameter.is_floating_point():
            wanted.skipped.setdefault(name, f"it is stored as {str(parameter.dtype).removeprefix('torch.')}")
            continue
        made = Fisher(tuple(parameter.shape))
        if "diag" in options.kinds:
            made.diagonal = wanted.like.new_zeros(made.shape)
        if "block" in options.kinds and _has_block(name, parameter, options, wanted):
            made.full = wanted.like.new_zeros(parameter.numel(), parameter.numel())
        if made.diagonal is None and made.full is None:
            continue
        wanted.fishers[name] = made
        uses = fired.get(name, [])
        if name in found.apart or not _alone(uses, name, made):
            wanted.rest.append(name)
            continue
        for site in uses:
            tap = _tap(wanted, site)
            if site.weight == name:
                tap.weight = made
            else:
                tap.bias = made


def _has_block(name: str, parameter: Tensor, options: Options, wanted: Wanted) -> bool:
    """Whether a tensor's full block is taken: vectors up to the limit, or what was named."""
    count = parameter.numel()
    named = options.names is not None
    vector = count == max(parameter.shape, default=1)
    if not (vector or named):
        return False
    if count <= options.block_limit:
        return True
    need = f"a full block of its {count:,} values needs {4 * count * count / 1e9:.3g} GB"
    if named:
        raise StatisticsError(f"{name!r}: {need}, and the limit is {options.block_limit:,} values (block_limit).")
    wanted.skipped.setdefault(name, f"{need}, above the limit of {options.block_limit:,} values")
    return False


def _alone(uses: list[Site], name: str, made: Fisher) -> bool:
    """Whether a tensor's per-example gradient follows from what its sites see."""
    if not uses or any(site.dim is None or site.wrong for site in uses):
        return False
    if len(uses) == 1:
        if uses[0].kind == EMBEDDING and made.full is not None:
            return False
        return (uses[0].part if uses[0].weight == name else uses[0].bias_part) is None
    parts = [site.part if site.weight == name else site.bias_part for site in uses]
    apart = all(part is not None for part in parts) and len({(p.start, p.stop) for p in parts if p}) == len(parts)
    return apart and made.full is None


def _tap(wanted: Wanted, site: Site) -> Tap:
    return wanted.taps.setdefault(site, Tap(site))
