"""The catalogue of what is refused about data (section 11 of the notes on MaTS, items 1 to 6), word for word.

Every row is one clause, in the order of the section: what a person does, through the public calls, and the whole
sentence that the person reads. Examples and labels (item 7) are in ``test_data_errors_input.py``, files,
equal experts (8, 9) and the command line in ``test_data_errors_files.py``, adapters in ``test_matched_adapters.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest_engine import state
from small_statistics import NAMES, W, both, experts, having, merge, noting, one, psd, spoilt

import mergelab
from mergelab.checkpoints import load
from mergelab.engine import plan
from mergelab.errors import MergeLabError, MethodError, RecipeError, StatisticsError
from mergelab.methods import registry
from mergelab.recipe import Recipe
from mergelab.runs.choose import choose
from mergelab.statistics import Block, TaskStatistics

Row = tuple[str, Callable[[], object], type[MergeLabError], str]
BEE = f"The statistics of 'bee' (bee), tensor '{W}': "
READ = f"The statistics of 'bee', tensor '{W}': "
AGAIN = "collect the statistics again"
HERE = f"{AGAIN} from this model."
NO_BASE = (
    "works on differences from the base, but no base is given; name the checkpoint that the models were fine-tuned "
    "from."
)
VECTORS = (
    ", and all 2 tensors of these models are vectors, such as 'k.ia3_l', with no linear inputs of their own; use "
    "'mats' with objective 'block' or 'diag'."
)


def bee(**changed: torch.Tensor | None) -> dict[str, Any]:
    """The experts, of which ``bee`` has other tensors or lacks them."""
    ant, other = experts().values()
    return {"ant": ant, "bee": {key: t for key, t in {**other, **changed}.items() if t is not None}}


def eight_bits(dtype: torch.dtype, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {name: {**s, W: torch.ones(6, 4).to(dtype)} if name in names else s for name, s in experts().items()}


def named(*names: str) -> Recipe:
    return Recipe.from_dict({"merge_method": "mats", "models": [{"model": "a", "name": name} for name in names]})


def ia3(method: str, **more: Any) -> object:
    models = {name: {key: 1 + 0.1 * torch.randn(5) for key in ("k.ia3_l", "v.ia3_l")} for name in NAMES}
    block = Block(torch.eye(4), torch.eye(4)[None], rows=9, layout="linear", shape=(4, 4))
    return merge(method, models, statistics={name: TaskStatistics(name, {"q.weight": block}) for name in NAMES}, **more)


def large() -> object:
    return merge(models={name: {"w": torch.randn(200, 100)} for name in NAMES}, objective="block")


def grams() -> dict[str, TaskStatistics]:
    return {name: TaskStatistics(name, {W: one(name).block(W, ["gram"])}) for name in NAMES}


def others() -> object:
    return merge(models={name: {"v": torch.ones(3, 3), "w": torch.ones(3, 3)} for name in NAMES})


def with_parts(count: int) -> dict[str, TaskStatistics]:
    """``bee``'s output factor comes in another number of slices."""
    return both(having(outputs=torch.eye(6 // count).expand(count, -1, -1).contiguous()))


def init(value: Any, base: Any = None) -> Callable[[], object]:
    return lambda: merge(base=base, init=value)


def out_of_range(name: str, value: Any, sentence: str, method: str = "mats", what: str = "5") -> Row:
    row_id = f"{what} {name}={value} of {method}"
    return row_id, lambda: merge(method, **{name: value}), MethodError, f"Parameter '{name}' of '{method}' {sentence}"


def known_inits() -> str:
    names = [m.name for m in registry().values() if not (m.learns or m.collects)]
    return ", ".join(sorted(["average", "base", *names]))


HEADS = {f"h{i}": torch.ones(1) for i in range(7)}
MODELS: list[Row] = [
    *(
        (f"1 one model for {method}", lambda method=method: merge(method, {"ant": state()}), MethodError,
         f"Method '{method}' merges at least 2 models, but 1 is given.")
        for method in ("mats", "regmean", "fisher")
    ),
    ("1 no models", lambda: merge(models={}), MethodError, "Method 'mats' got no models; give at least 2."),
    ("1 duplicate names", lambda: named("x", "x"), RecipeError, "Two models have the name 'x'; give each its own."),
    ("1 zero weights", lambda: merge(weight=0.0), MethodError,
     "Every 'weight' of 'mats' is 0, so no task counts; give at least one model more than 0."),
    ("1 zero weights one by one", lambda: merge("fisher", weight=[0.0, 0.0]), MethodError,
     "Every 'weight' of 'fisher' is 0, so no task counts; give at least one model more than 0."),
    ("1 one negative weight", lambda: merge(weight=[1.0, -1.0]), MethodError,
     "Parameter 'weight' of 'mats' (model 'bee') is -1, out of range: give 0 to 1e+06."),
    out_of_range("weight", float("nan"), "must be a finite number, not nan.", "regmean", "1"),
    out_of_range("weight", float("inf"), "must be a finite number, not inf.", "mats", "1"),
    out_of_range("weight", [1.0], "has 1 value for 2 models; give one for each model.", "mats", "1"),
    out_of_range("weight", [1.0, 1.0, 1.0], "has 3 values for 2 models; give one for each model.", "fisher", "1"),
    out_of_range("weight", {"ant": 1.0}, "has no value for the model 'bee'; give one for each model.", "mats", "1"),
    ("1 a weight of no model", lambda: merge(weight={"ant": 1.0, "be": 1.0}), MethodError,
     "Parameter 'weight' of 'mats' has a value for 'be', which is no model. Did you mean 'bee'?"),
    ("2 missing keys, the first five", lambda: merge(models={"ant": {**state(), **HEADS}, "bee": state()}), MethodError,
     "Model 'bee' lacks 7 tensors that model 'ant' has: 'h0', 'h1', 'h2', 'h3', 'h4' and 2 more. Merge checkpoints of "
     "one architecture, fine-tuned from the same base."),
    ("2 extra keys, the first five", lambda: merge(models=bee(**HEADS), base=state()), MethodError,
     "Model 'bee' has 7 tensors that the base lacks: 'h0', 'h1', 'h2', 'h3', 'h4' and 2 more. Save the "
     "model without its task head, or choose the base that it was fine-tuned from."),
    ("2 missing and extra keys", lambda: merge(models=bee(norm=None, scale=torch.ones(4))), MethodError,
     "Model 'bee' lacks 1 tensor that model 'ant' has: 'norm'. Merge checkpoints of one architecture, fine-tuned from "
     "the same base. (1 more such difference.)"),
    ("2 another shape", lambda: merge(models=bee(norm=torch.ones(5))), MethodError,
     "Tensor 'norm' of model 'bee' has shape 5, but 4 in model 'ant'. Merge checkpoints of one size and vocabulary."),
    ("2 integers in one model", lambda: merge(models=eight_bits(torch.int8, ("bee",))), MethodError,
     f"Tensor '{W}' of model 'bee' is stored as I8, but as F32 in model 'ant'. Convert the checkpoints to one "
     "floating-point dtype (quantised weights cannot be merged)."),
    ("2 integers in every model", lambda: merge(models=eight_bits(torch.int8)), MethodError,
     f"Tensor '{W}' is stored as I8 in every model, and 'mats' solves for it in floating point; convert the "
     "checkpoints to one of F64, F32, F16, BF16 (quantised weights cannot be merged)."),
    ("2 eight-bit floats", lambda: merge(models=eight_bits(torch.float8_e4m3fn)), MethodError,
     f"Tensor '{W}' of model 'ant' is stored as F8_E4M3, which cannot be averaged. Convert the checkpoint to float32, "
     "float16 or bfloat16 first."),
]  # fmt: skip

STATISTICS: list[Row] = [
    ("3 none at all", lambda: merge(statistics=None), StatisticsError,
     "Method 'mats' needs statistics of every model's task (kfac), and none are given; collect them with `python -m "
     "mergelab stats SOURCE --kinds kfac --out DIR` and name that folder as 'statistics' in the recipe, or with "
     "--stats."),
    ("3 no such folder", lambda: merge("regmean", statistics="no/such"), StatisticsError,
     "There is no folder 'no/such' with statistics; make it with `python -m mergelab stats SOURCE --kinds gram --out "
     "no/such`, or name another."),
    ("3 neither folder nor mapping", lambda: merge(statistics=3), StatisticsError,
     "Statistics must be a folder or a mapping of names to them, not int; collect them with python -m mergelab stats."),
    ("3 a missing task", lambda: merge(statistics={"ant": one("ant")}), StatisticsError,
     "There are no statistics of the model 'bee': there are some of ant. Collect them from it with python -m mergelab "
     "stats."),
    ("3 an empty mapping", lambda: merge(statistics={}), StatisticsError,
     "There are no statistics of the model 'ant': there are none at all. Collect them from it with python -m mergelab "
     "stats."),
    ("3 no file of that name", lambda: merge(statistics={"ant": one("ant"), "bee": "no/such"}), StatisticsError,
     "There is no file 'no/such' with statistics."),
    ("3 weights in their place", lambda: merge(statistics=both() | {"bee": state()}), StatisticsError,
     "Those of 'bee' among the statistics are of the type dict; give what collect_stats returned, or the file that it "
     "was written to."),
    ("3 a missing kind", lambda: merge(statistics=grams()), StatisticsError,
     "The statistics of 'ant': they hold only gram, and the model 'ant' needs kfac; collect them again with --kinds "
     "gram,kfac."),
    ("3 A of another size", lambda: merge(statistics=both(having(inputs=psd(5)))), StatisticsError,
     f"{BEE}the Gram matrix A has the shape [5, 5], expected [4, 4]; {HERE}"),
    ("3 A that is not square", lambda: merge("regmean", statistics=both(having(inputs=torch.ones(4, 3)))),
     StatisticsError, f"{BEE}the Gram matrix A has the shape [4, 3], expected [4, 4]; {HERE}"),
    ("3 G of another size", lambda: merge(statistics=both(having(outputs=psd(5)[None]))), StatisticsError,
     f"{BEE}the output factor G has the shape [1, 5, 5], expected [parts, out/parts, out/parts] with out = 6; {HERE}"),
    ("3 G that is not square", lambda: merge(statistics=both(having(outputs=torch.ones(1, 6, 5)))), StatisticsError,
     f"{BEE}the output factor G has the shape [1, 6, 5], expected [parts, out/parts, out/parts] with out = 6; {HERE}"),
    ("3 G in other slices", lambda: merge(statistics=with_parts(3)), MethodError,
     f"The statistics of tensor '{W}' have output factors of 1, 3 parts; collect them again in one way for all "
     "models."),
    ("3 a diagonal of another size", lambda: merge("fisher", statistics=both(having(diagonal=torch.ones(4, 6)))),
     StatisticsError, f"{BEE}the diagonal Fisher has the shape [4, 6], expected [6, 4]; {HERE}"),
    ("3 a full block of another size", lambda: merge(objective="block", statistics=both(having(full=psd(23)))),
     StatisticsError, f"{BEE}the full block has the shape [23, 23], expected [24, 24]; {HERE}"),
    ("3 a mean input of another size", lambda: merge(bias="augment", statistics=both(having(mean=torch.ones(5)))),
     StatisticsError, f"{BEE}the mean input has the shape [5], expected [4]; {HERE}"),
    ("3 of a layer of another shape", lambda: merge("regmean", statistics=both(noting(shape=(7, 4)))), StatisticsError,
     f"{BEE}the statistics were collected for the shape [7, 4] and the model's tensor has [6, 4]; {HERE}"),
    ("3 of a layer laid out otherwise", lambda: merge(models={n: {W: torch.eye(4)} for n in NAMES}, statistics={
        name: TaskStatistics(name, {W: Block(psd(4), psd(4)[None], rows=1, layout=layout)})
        for name, layout in zip(NAMES, ("linear", "conv1d"), strict=True)}), StatisticsError,
     f"{BEE}the layout is 'conv1d', and 'linear' in those of 'ant'; collect them again in one way for all models."),
    ("3 A that is not symmetric", lambda: merge(statistics=both(having(inputs=spoilt(4, (0, 1), 0.25)))),
     StatisticsError, f"{READ}the Gram matrix A is not symmetric: entries that should be equal differ by 0.25, more "
     f"than 0.0001 of its largest entry 1; {AGAIN}."),
    ("3 G that is not symmetric", lambda: merge(statistics=both(having(outputs=spoilt(6, (5, 0), 2.0)[None]))),
     StatisticsError, f"{READ}the output factor G is not symmetric: entries that should be equal differ by 2, more "
     f"than 0.0001 of its largest entry 2; {AGAIN}."),
    ("3 a full block that is not symmetric", lambda: merge(objective="block", statistics=both(having(
        full=spoilt(24, (1, 2), 0.5)))), StatisticsError, f"{READ}the full block is not symmetric: entries that "
     f"should be equal differ by 0.5, more than 0.0001 of its largest entry 1; {AGAIN}."),
    ("3 a negative diagonal", lambda: merge("fisher", statistics=both(having(diagonal=-torch.ones(6, 4)))),
     StatisticsError, f"{READ}the diagonal Fisher has -1 on its diagonal, where squares are averaged and nothing is "
     f"below 0; {AGAIN}."),
    ("3 a negative diagonal of A", lambda: merge("regmean", statistics=both(having(inputs=spoilt(4, (2, 2), -0.5)))),
     StatisticsError, f"{READ}the Gram matrix A has -0.5 on its diagonal, where squares are averaged and nothing is "
     f"below 0; {AGAIN}."),
    ("3 NaN", lambda: merge(statistics=both(having(inputs=spoilt(4, (3, 0), float("nan"))))), StatisticsError,
     f"{READ}the Gram matrix A has 1 of 16 values that are NaN or infinite; look for a model that overflows, and "
     f"{AGAIN}."),
    ("3 infinity", lambda: merge(statistics=both(having(outputs=torch.full((1, 6, 6), float("inf"))))),
     StatisticsError, f"{READ}the output factor G has 36 of 36 values that are NaN or infinite; look for a model that "
     f"overflows, and {AGAIN}."),
    ("3 no rows", lambda: merge("regmean", statistics=both(noting(rows=0))), StatisticsError,
     f"{BEE}the Gram matrix A was averaged over 0 rows, at least 1 is needed; {AGAIN}."),
    ("3 no examples", lambda: merge("fisher", statistics=both(noting(examples=0))), StatisticsError,
     f"{BEE}the diagonal Fisher was averaged over 0 examples, at least 1 is needed; {AGAIN}."),
    ("3 of another checkpoint", lambda: merge(statistics=both(weights_hash="ab" * 32)), StatisticsError,
     "The statistics of 'bee': they were collected from other weights than the model 'bee' has: their hash is "
     f"abababababab, the model's {load(experts()['bee']).weights_hash[:12]}. Collect them again from it."),
    ("3 of no tensor of these models", others, MethodError,
     "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs "
     "(K-FAC factors), and the statistics have them for none of the 2 tensors that all models share; collect them "
     "again from these models."),
    ("3 of one unknown Fisher", lambda: one("ant", fisher="exakt"), StatisticsError,
     "Statistics of 'ant': there is no Fisher 'exakt'. Did you mean 'exact'?"),
]  # fmt: skip

INITS: list[Row] = [
    ("4 a slip", init("averge"), MethodError, "There is no init 'averge'. Did you mean 'average'?"),
    ("4 an unknown name", init("zeros"), MethodError, f"There is no init 'zeros'. Known: {known_inits()}."),
    ("4 the paper's word", init("pretrained"), MethodError,
     "There is no init 'pretrained': the weights before fine-tuning are 'base'."),
    ("4 a path that is no name", init("merged/model.safetensors"), MethodError,
     "There is no init 'merged/model.safetensors'. A merged checkpoint is given as {model: PATH}."),
    ("4 no such file", init({"model": "/no/such"}), MethodError,
     "The init: There is no file or folder '/no/such'. A source is 'zoo:NAME/base' or 'zoo:NAME/TASK', a file or "
     "folder on this machine, or 'hub:org/name' ('hub:org/name@revision')."),
    ("4 no init at all", init(0.3), RecipeError,
     "'init' must be a method's name, 'base', 'average' or a mapping with 'merge_method', not a number."),
    ("4 an unknown key", init({"method": "ties"}), RecipeError,
     "Unknown key 'method' in 'init'. Did you mean 'merge_method'?"),
    ("4 missing keys", init({key: t for key, t in state().items() if key != "norm"}, state()), MethodError,
     "The init lacks 1 tensor that the base has: 'norm'. Give a merge of these models as init."),
    ("4 extra keys", init({**state(), "head": torch.ones(2)}), MethodError,
     "The init has 1 tensor that every model lacks: 'head'. Give a merge of these models as init."),
    ("4 another shape", init({**state(), "norm": torch.ones(9)}), MethodError,
     "Tensor 'norm' of the init has shape 9, but 4 in every model. Give a merge of these models as init."),
    ("4 integers", init({**state(), "norm": torch.ones(4).to(torch.int8)}, state()), MethodError,
     "Tensor 'norm' of the init is stored as I8, but as F32 in the base. Give a merge of these models as init."),
    *((f"4 {name} without the base", init(name), MethodError, f"The init '{name}': Method '{name}' {NO_BASE}")
      for name in ("task_arithmetic", "ties")),
    ("4 base without the base", init("base"), MethodError,
     "The init 'base' needs the base, and none is given; name it, or start from 'average'."),
    ("4 its parameters", init({"merge_method": "task_arithmetic", "parameters": {"lamda": 1}}, state()), MethodError,
     "The init 'task_arithmetic': Method 'task_arithmetic' has no parameter 'lamda'. Did you mean 'lambda'?"),
    ("4 one that learns", init("adamerging", state()), MethodError,
     "The init 'adamerging' learns its coefficients on data first; merge it to a folder and give that as init: {model: "
     "FOLDER}."),
    ("4 one that collects", init("regmean_pp", state()), MethodError,
     "The init 'regmean_pp' collects its statistics as it is merged; merge it to a folder and give that as init: "
     "{model: FOLDER}."),
    ("4 of a method that has none", lambda: mergelab.merge("ties", experts(), state(), init="linear"), MethodError,
     "Method 'ties' does not start from another merge; leave 'init' out, or use "
     + ", ".join(repr(m.name) for m in registry().values() if m.init and m.name != "regmean_pp") + " or 'regmean_pp'."),
]  # fmt: skip

VALUES: list[Row] = [
    out_of_range("iterations", -1, "is -1, out of range: give 0 to 10000."),
    out_of_range("iterations", 2.5, "must be a whole number, not 2.5."),
    out_of_range("iterations", "10", "must be a whole number, not '10'."),
    ("5 iterations of a grid", lambda: choose(lambda _: {}, named("a", "b"), {"iterations": [5, -1]}), MethodError,
     "Parameter 'iterations' of 'mats' is -1, out of range: give 0 to 10000."),
    out_of_range("rtol", 0.0, "is 0, out of range: give 1e-14 to 1."),
    out_of_range("rtol", -1e-5, "is -1e-05, out of range: give 1e-14 to 1."),
    *(out_of_range("off_diagonal", value, f"is {value}, out of range: give 0 to 1.", method)
      for value in (-0.1, 1.1) for method in ("mats", "regmean")),
    out_of_range("damping", -0.1, "is -0.1, out of range: give 0 to 1000."),
    *(out_of_range("floor", -1e-8, "is -1e-08, out of range: give 0 to 1.", method) for method in ("mats", "fisher")),
    out_of_range("floor_relative", -0.5, "is -0.5, out of range: give 0 to 1."),
    out_of_range("ridge", -1.0, "is -1, out of range: give 0 to 1.", "regmean"),
    out_of_range("objective", "block_fisher", "cannot be 'block_fisher'. Known: block, diag, gram, identity, kfac."),
    out_of_range("preconditioner", "ilu", "cannot be 'ilu'. Known: jacobi, kronecker, none."),
    out_of_range("normalize", "trase", "cannot be 'trase'. Did you mean 'trace'?"),
    out_of_range("leftover", "mean", "cannot be 'mean'. Known: average, fisher, init."),
    out_of_range("bias", "augmented", "cannot be 'augmented'. Did you mean 'augment'?"),
    ("5 biases with another objective", lambda: merge(bias="augment", objective="diag"), MethodError,
     "Parameter 'bias' of 'mats' is 'augment', which needs objective 'kfac' or 'gram', not 'diag'; leave biases as "
     "leftovers, or choose another objective."),
    ("5 a preconditioner of another objective", lambda: merge(preconditioner="kronecker", objective="diag"),
     MethodError, "Preconditioner 'kronecker' of 'mats' needs objective 'kfac' or 'gram', not 'diag'; choose 'jacobi' "
     "or 'none'."),
    ("5 an unknown parameter", lambda: merge("fisher", off_diagonal=0.5), MethodError,
     "Method 'fisher' has no parameter 'off_diagonal'. Known: floor, floor_relative, leftover, normalize, weight."),
]  # fmt: skip

MISMATCHES: list[Row] = [
    ("6 K-FAC on (IA)3", lambda: ia3("mats"), MethodError,
     "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs (K-FAC factors)"
     + VECTORS),
    ("6 Gram on (IA)3", lambda: ia3("mats", objective="gram"), MethodError,
     "Method 'mats' with objective 'gram' needs inputs of linear layers (Gram matrices)" + VECTORS),
    ("6 RegMean on (IA)3", lambda: ia3("regmean"), MethodError,
     "Method 'regmean' needs inputs of linear layers (Gram matrices)" + VECTORS),
    ("6 a full block above the limit", large, MethodError,
     "Method 'mats' with objective 'block' needs a full Fisher block per tensor, and no tensor has one: that of 'w' "
     "with 20,000 entries would take 1.6 GB a model; use objective 'kfac' or 'diag'."),
    ("6 factors of LoRA", lambda: merge(models={n: {"q.lora_A.weight": torch.ones(2, 4)} for n in NAMES}), MethodError,
     "Tensor 'q.lora_A.weight' is one factor of a LoRA adapter, and factors cannot be solved for one by one; give the "
     "adapters as folders with their base, so that their products are merged."),
    ("6 an adapter without its base", lambda: merge(space="adapter"), MethodError,
     "Model 'ant': ant is no adapter but whole weights, so it has no vectors of its own: leave out space 'adapter'."),
]  # fmt: skip

CATALOGUE = [*MODELS, *STATISTICS, *INITS, *VALUES, *MISMATCHES]


@pytest.mark.parametrize(("call", "error", "sentence"), [r[1:] for r in CATALOGUE], ids=[r[0] for r in CATALOGUE])
def test_a_clause_of_the_catalogue(call: Callable[[], object], error: type[MergeLabError], sentence: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence
    assert type(caught.value) is error


def test_what_the_rows_change_is_good_before() -> None:
    """Nothing else about the experts, their statistics and those without a change is refused."""
    for method, more in (("mats", {}), ("mats", {"objective": "block"}), ("regmean", {}), ("fisher", {})):
        for base, init_ in ((None, None), (state(), "base"), (state(), "task_arithmetic")):
            assert merge(method, base=base, init=init_, **more)[W].isfinite().all()
    assert plan("mats", experts(), statistics=both()).warnings == ()
