"""What a row pass promises besides its numbers: nothing shared is written, nothing unknown is guessed."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from row_models import by_row, far, jittered, merged, mixtures, parts_for
from torch import Tensor, nn

from mergelab.errors import RoutingError
from mergelab.routing.parts import Dense, LowRank
from mergelab.routing.rows import CannotRoute, RowModule

ROWS = 5


class Block(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def tower() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return jittered(Tower()), torch.randn(ROWS, 7, 6)


# -- nothing shared


def test_weights_are_shared_and_the_callers_module_is_left_alone() -> None:
    module, x = tower()
    state = {n: t.clone() for n, t in module.state_dict().items()}
    parts = parts_for(module, kinds=("low",))
    classes = {n: type(m) for n, m in module.named_modules()}
    hooks = [len(m._forward_pre_hooks) for m in module.modules()]
    rows = RowModule(module, state, parts)
    held = dict(rows.module.named_parameters())
    assert all(held[n].data_ptr() == t.data_ptr() for n, t in state.items())  # the state's storage, not a copy
    assert not any(p.requires_grad for p in held.values())
    rows(mixtures(), lambda m: m(x))
    assert {n: type(m) for n, m in module.named_modules()} == classes
    assert [len(m._forward_pre_hooks) for m in module.modules()] == hooks
    assert all(p.requires_grad for p in module.parameters())
    assert all(isinstance(m, classes[n]) for n, m in rows.module.named_modules())
    own = RowModule(module, None, parts)
    assert own.module.embed.weight.data_ptr() == module.embed.weight.data_ptr()


def test_the_state_given_is_run_and_not_the_modules() -> None:
    module, x = tower()
    other = {n: t + 0.1 for n, t in module.state_dict().items()}
    rows = RowModule(module, other, parts_for(module))
    module_of_state = jittered(Tower())
    module_of_state.load_state_dict(other)
    assert torch.allclose(rows.module(x), module_of_state(x))


def test_parts_stay_factors() -> None:
    """Resident: the stacked factors of all tasks and little else, never a matrix per task."""
    module = nn.Linear(400, 300)
    parts = [
        {"weight": LowRank(torch.randn(300, 4), torch.ones(4), torch.randn(4, 400), (300, 400)),
         "bias": Dense(torch.randn(300))}
        for _ in range(8)
    ]  # fmt: skip
    stored = sum(4 * p.numbers for part in parts for p in part.values())
    rows = RowModule(module, None, parts)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(rows)}
    extra = sum(held.values()) - sum(p.untyped_storage().nbytes() for p in module.parameters())
    assert extra <= 1.05 * stored
    assert rows.nbytes <= 1.05 * stored


def _tensors(rows: RowModule) -> list[Tensor]:
    """Every tensor that the routed module keeps alive."""
    import gc

    found, seen, todo = [], set(), [rows]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, (dict, list, tuple, set)) or type(thing).__module__.startswith(("mergelab", "torch.nn")):
            todo.extend(gc.get_referents(thing))
    return found


def test_threads_with_other_weights_do_not_disturb_each_other() -> None:
    module, x = tower()
    rows = RowModule(module, None, parts_for(module))
    mixes = [torch.softmax(3 * torch.randn(ROWS, 3), 1) for _ in range(4)]
    want = [rows(w, lambda m: m(x)) for w in mixes] + [module(x)]
    start, wrong = threading.Barrier(5), []

    def work(i: int) -> None:
        start.wait()
        for _ in range(60):
            with torch.inference_mode():
                got = rows(mixes[i], lambda m: m(x)) if i < 4 else rows.module(x)
            if not torch.allclose(got, want[i], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_weights_end_with_their_context_even_after_an_error_and_nest() -> None:
    module, x = tower()
    rows, other = (RowModule(module, None, parts_for(module)) for _ in range(2))
    plain, w = module(x), mixtures()
    with pytest.raises(ZeroDivisionError), rows.weights(w):
        raise ZeroDivisionError
    assert torch.equal(rows.module(x), plain)
    with rows.weights(w):
        mixed = rows.module(x)
        with other.weights(w.flip(0)):
            assert torch.equal(rows.module(x), mixed)  # another module's weights are not its own
            inner = other.module(x)
        with rows.weights(w.flip(0)):
            assert torch.equal(rows.module(x), inner)
        assert torch.equal(rows.module(x), mixed)


def test_order_and_company_of_rows_do_not_matter() -> None:
    module, x = tower()
    rows, w, order = RowModule(module, None, parts_for(module)), mixtures(), torch.tensor([3, 0, 4, 1, 2])
    every = rows(w, lambda m: m(x))
    assert far(rows(w[order], lambda m: m(x[order])), every[order]) < 1e-5
    assert far(rows(w[1:3], lambda m: m(x[1:3])), every[1:3]) < 1e-5


# -- routing on the way


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_routing_at_a_block_equals_the_merge_of_what_comes_after(layer: int) -> None:
    module, x = tower()
    parts, w = parts_for(module, kinds=("low", "dense")), mixtures()
    rows, seen = RowModule(module, None, parts), []

    def route(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return w

    with torch.inference_mode(), rows.route_at(layer, route) as now:
        got = rows.module(x)
    after = {n for n in parts[0] if n.startswith("head") or (n.startswith("blocks") and int(n.split(".")[1]) >= layer)}
    assert now.tensors == after
    cut = [{n: p for n, p in part.items() if n in after} for part in parts]
    assert far(got, by_row(module, cut, w, lambda m, s: m(x[s]))) < 1e-5
    hidden = module.embed(x)
    for block in module.blocks[:layer]:
        hidden = block(hidden)
    assert torch.allclose(seen[0], hidden, atol=1e-6) and len(seen) == 1


def test_blocks_are_found_and_asked_for_by_path() -> None:
    module, x = tower()
    whole = nn.ModuleDict({"image": module, "text": nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)])})
    assert len(RowModule(whole, None, [{}]).blocks) == 5
    rows = RowModule(whole, None, [{}], blocks="image")
    assert [type(b) for b in rows.blocks] == [Block] * 3
    assert len(RowModule(whole, None, [{}], blocks="image.blocks").blocks) == 3
    with pytest.raises(RoutingError, match="no block 3"):
        rows.route_at(3, lambda h: h)
    with pytest.raises(RoutingError, match="'pictures'"):
        RowModule(whole, None, [{}], blocks="pictures")
    with pytest.raises(RoutingError, match="2 rows"), rows.route_at(0, lambda h: torch.ones(2, 1)):
        rows.module["image"](x)


# -- names


def test_names_in_other_spellings() -> None:
    module, x = tower()
    parts, w = parts_for(module), mixtures()
    want = RowModule(module, None, parts)(w, lambda m: m(x))
    spelt = [{"old." + n: p for n, p in part.items()} for part in parts]
    rows = RowModule(module, None, spelt, rename=lambda n: n.removeprefix("old."))
    assert torch.equal(rows(w, lambda m: m(x)), want)
    table = {"old." + n: n for n in module.state_dict()}
    assert torch.equal(RowModule(module, None, spelt, rename=table)(w, lambda m: m(x)), want)


def test_a_part_without_a_place_is_named() -> None:
    module, _ = tower()
    stray = {"blocks.9.up.weight": Dense(torch.zeros(3))}
    with pytest.raises(RoutingError, match=r"task 1.*blocks\.9\.up\.weight"):
        RowModule(module, None, [{}, stray])
    RowModule(module, None, [{}, stray], ignore={"blocks.9.up.weight"})
    RowModule(module, None, [{}, stray], ignore=lambda n: "9" in n)
    with pytest.raises(RoutingError, match=r"embed\.bias.*\[3\].*\[12\]"):
        RowModule(module, None, [{"embed.bias": Dense(torch.zeros(3))}])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(ids)))


@pytest.mark.parametrize("kind", ["low", "dense"])
@pytest.mark.parametrize("names", [{"table.weight"}, {"out.weight"}, {"table.weight", "out.weight"}])
def test_a_tied_tensors_part_applies_in_both_places(kind: str, names: set[str]) -> None:
    module = jittered(Tied())
    ids, w = torch.arange(ROWS * 3).view(ROWS, 3) % 9, mixtures()
    parts = [dict.fromkeys(names, part["table.weight"]) for part in parts_for(module, kinds=(kind,), size=0.5)]
    once = [{"table.weight": next(iter(part.values()))} for part in parts]
    got = RowModule(module, None, parts)(w, lambda m: m(ids))
    assert far(got, by_row(module, once, w, lambda m, s: m(ids[s]))) < 1e-5


def test_two_parts_for_one_tensor_must_agree() -> None:
    part = {"table.weight": Dense(torch.zeros(9, 6)), "out.weight": Dense(torch.ones(9, 6))}
    with pytest.raises(RoutingError, match=r"one tensor"):
        RowModule(Tied(), None, [part])


# -- refusals


class Odd(nn.Module):
    """Reads its own parameters in ways that nobody has told."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.scale, self.inner, self.use = nn.Parameter(torch.ones(6)), nn.Linear(6, 6), use

    def forward(self, x: Tensor) -> Tensor:
        if self.use == "own":
            return self.inner(x * self.scale)
        if self.use == "foreign":
            return x @ self.inner.weight.t() + self.inner.bias  # not through the layer's own forward
        if self.use == "flattened":
            return self.inner(x.flatten(0, 1)).view(x.shape)
        if self.use == "dtype":
            return self.inner(x.to(self.inner.weight.dtype))
        return F.linear(x, self.inner.weight, self.inner.bias)


@pytest.mark.parametrize("use, name", [("own", "scale"), ("foreign", "inner.weight"), ("flattened", "inner")])
def test_what_is_not_understood_is_refused_by_name(use: str, name: str) -> None:
    module, x = Odd(use), torch.randn(ROWS, 3, 6)
    rows = RowModule(module, None, parts_for(module))
    assert rows.uncarried == ("scale",)
    for run in (lambda: rows(mixtures(), lambda m: m(x)), lambda: rows.check(lambda m, n: m(x[:n]))):
        with pytest.raises(CannotRoute, match=rf"'{name}'.*group"):
            run()
    assert torch.equal(rows.module(x), module(x))  # without weights it is the shared model


@pytest.mark.parametrize("use", ["dtype", "function"])
def test_an_unknown_parameter_that_is_not_read_does_not_matter(use: str) -> None:
    module, x, w = Odd(use), torch.randn(ROWS, 3, 6), mixtures()
    parts = parts_for(module)
    rows = RowModule(module, None, parts)
    rows.check(lambda m, n: m(x[:n]))
    assert far(rows(w, lambda m: m(x)), by_row(module, parts, w, lambda m, s: m(x[s]))) < 1e-5


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight.abs(), self.bias)


@pytest.mark.parametrize(
    "module, shape",
    [
        (Doubling(6, 6), (ROWS, 6)),
        (nn.ConvTranspose1d(6, 6, 2), (ROWS, 6, 4)),
        (nn.Bilinear(6, 6, 2), (ROWS, 6)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), (ROWS, 6)),
    ],
)
def test_subclasses_and_unknown_layers_are_refused(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    parts = parts_for(module, kinds=("dense",))
    call = (lambda m: m(x, x)) if isinstance(module, nn.Bilinear) else lambda m: m(x)
    with pytest.raises(CannotRoute):
        RowModule(module, None, parts)(mixtures(), call)


class MixesRows(nn.Module):
    """Its second layer sees something else than the rows, of a length that may be their number by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.read = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.read(self.queries).t()


def test_the_check_notices_a_dimension_that_is_the_rows_by_accident() -> None:
    module, x = MixesRows(), torch.randn(3, 6)
    rows = RowModule(module, None, [{"read.weight": Dense(torch.randn(6, 6))} for _ in range(2)])
    with pytest.raises(CannotRoute):
        rows.check(lambda m, n: m(x[:n]))


@pytest.mark.parametrize(
    "weights, said",
    [
        (torch.ones(3), r"\[rows, 3\]"),
        (torch.ones(ROWS, 2), r"\[rows, 3\]"),
        (torch.ones(0, 3), r"\[rows, 3\]"),
        (torch.full((ROWS, 3), float("nan")), "NaN"),
        ([[1.0, 0, 0]], "list"),
    ],
)
def test_bad_weights_are_refused(weights: Tensor, said: str) -> None:
    module, _ = tower()
    with pytest.raises(RoutingError, match=said):
        RowModule(module, None, parts_for(module)).weights(weights)


def test_a_batch_of_another_size_is_refused() -> None:
    module, x = tower()
    with pytest.raises(CannotRoute, match="embed"):
        RowModule(module, None, parts_for(module))(mixtures()[:4], lambda m: m(x))


def test_merged_is_the_merge() -> None:
    module, _ = tower()
    parts, w = parts_for(module), mixtures()[0]
    got = RowModule(module, None, parts).merged(w)
    want = merged(module, parts, w).state_dict()
    assert set(got) == {n for part in parts for n in part}
    assert all(torch.allclose(got[n], want[n], atol=1e-5) for n in got)
