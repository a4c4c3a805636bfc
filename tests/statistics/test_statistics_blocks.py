"""What statistics must be, for blocks in memory; the sentences word for word."""

from __future__ import annotations

import pytest
import torch

from mergelab.errors import StatisticsError
from mergelab.statistics import KINDS, Block, TaskStatistics, check_block, inputs_of, outputs_of

EYE = torch.eye(3)


def sentence(block: Block, **more: object) -> str:
    with pytest.raises(StatisticsError) as caught:
        check_block(block, "w", "mnist.safetensors", **more)
    return str(caught.value)


def test_kinds_are_those_that_are_whole():
    assert KINDS == ("diag", "gram", "kfac", "block")
    assert Block().kinds == ()
    assert Block(inputs=EYE).kinds == ("gram",)
    assert Block(outputs=EYE[None]).kinds == ()
    assert Block(inputs=EYE, outputs=EYE[None]).kinds == ("gram", "kfac")
    assert Block(diagonal=EYE, full=EYE).kinds == ("diag", "block")


def test_only_drops_what_the_kinds_do_not_need():
    block = Block(EYE, EYE[None], EYE, EYE, EYE[0], 7, 5, "linear", (3, 3))
    gram = block.only(["gram"])
    assert set(gram.tensors) == {"inputs", "mean"} and (gram.rows, gram.examples, gram.shape) == (7, 5, (3, 3))
    assert set(block.only(["diag", "block"]).tensors) == {"diagonal", "full"}
    assert block.only([]).tensors == {}
    assert block.to(dtype=torch.float64).inputs.dtype == torch.float64
    assert block.nbytes == 4 * (9 + 9 + 9 + 9 + 3)


def test_inputs_and_outputs_of_every_layout():
    assert (inputs_of((5, 3), "linear"), outputs_of((5, 3), "linear")) == (3, 5)
    assert (inputs_of((5, 3), "conv1d"), outputs_of((5, 3), "conv1d")) == (5, 3)
    assert (inputs_of((5, 3, 2, 2), "conv"), outputs_of((5, 3, 2, 2), "conv")) == (12, 5)


def test_a_gpt2_layer_is_checked_the_other_way_round():
    good = Block(inputs=torch.eye(2), outputs=torch.eye(2).expand(3, 2, 2), rows=1, layout="conv1d", shape=(2, 6))
    assert check_block(good, "w", "s").kinds == ("gram", "kfac")
    wrong = Block(inputs=torch.eye(2), outputs=good.outputs, rows=1, layout="linear", shape=(2, 6))
    assert "A has the shape [2, 2], expected [6, 6]" in sentence(wrong)


def test_rounding_is_made_symmetric_and_more_than_rounding_is_refused():
    tilted = torch.eye(3)
    tilted[0, 1] = 5e-5
    found = check_block(Block(inputs=tilted, rows=1, layout="linear"), "w", "s").inputs
    assert torch.equal(found, found.T) and found[0, 1] == pytest.approx(2.5e-5)
    tilted[0, 1] = 3e-4
    assert sentence(Block(inputs=tilted, rows=1, layout="linear")) == (
        "mnist.safetensors, tensor 'w': the Gram matrix A is not symmetric: entries that should be equal differ by "
        "0.0003, more than 0.0001 of its largest entry 1; collect the statistics again."
    )


def test_symmetry_is_relative_to_the_largest_entry():
    small = 1e-12 * torch.eye(3)
    small[0, 1] = 1e-13
    assert "not symmetric" in sentence(Block(inputs=small, rows=1, layout="linear"))
    large = 1e12 * torch.eye(3)
    large[0, 1] = 1e7
    assert check_block(Block(inputs=large, rows=1, layout="linear"), "w", "s")


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (299, 2), (2, 299), (256, 255), (299, 298)])
@pytest.mark.parametrize("piece", ["inputs", "outputs", "full"])
def test_one_wrong_entry_of_a_large_matrix_is_found_wherever_it_is(place: tuple[int, int], piece: str):
    matrix = torch.eye(300)
    matrix[place] = 0.01
    parts = torch.stack([torch.eye(300), matrix]) if piece == "outputs" else matrix
    assert "is not symmetric: entries that should be equal differ by 0.01" in sentence(
        Block(**{piece: parts}, rows=1, examples=1, layout="linear")
    )
    matrix[place] = torch.nan
    parts = torch.stack([torch.eye(300), matrix]) if piece == "outputs" else matrix
    assert f"has 1 of {parts.numel():,} values that are NaN" in sentence(
        Block(**{piece: parts}, rows=1, examples=1, layout="linear")
    )
    matrix[place] = matrix[place[::-1]] = -torch.inf
    assert check_block(Block(inputs=torch.eye(300), rows=1, layout="linear"), "w", "s")
    assert "infinite" in sentence(Block(full=matrix, examples=1))


def test_zero_statistics_are_statistics():
    """A layer that nothing reaches has A = 0 or G = 0: no information, which is for the solver to say."""
    block = Block(inputs=torch.zeros(3, 3), outputs=torch.zeros(1, 2, 2), diagonal=torch.zeros(2, 3), rows=1,
                  examples=1, layout="linear", shape=(2, 3))  # fmt: skip
    assert check_block(block, "w", "s").kinds == ("diag", "gram", "kfac")


def test_sentences_name_the_file_the_tensor_and_both_values():
    again = "collect the statistics again"
    start = "mnist.safetensors, tensor 'w': "
    assert sentence(Block(inputs=torch.ones(3, 4), rows=1, layout="linear", shape=(5, 3))) == (
        f"{start}the Gram matrix A has the shape [3, 4], expected [3, 3]; {again} from this model."
    )
    assert sentence(Block(inputs=EYE, outputs=torch.ones(2, 2, 2), rows=1, layout="linear", shape=(5, 3))) == (
        f"{start}the output factor G has the shape [2, 2, 2], expected [parts, out/parts, out/parts] with out = 5; "
        f"{again} from this model."
    )
    assert sentence(Block(diagonal=-EYE, examples=1)) == (
        f"{start}the diagonal Fisher has -1 on its diagonal, where squares are averaged and nothing is below 0; "
        f"{again}."
    )
    assert sentence(Block(inputs=EYE, layout="linear")) == (
        f"{start}the Gram matrix A was averaged over 0 rows, at least 1 is needed; {again}."
    )
    assert sentence(Block(full=EYE)) == (
        f"{start}the full block was averaged over 0 examples, at least 1 is needed; {again}."
    )
    assert sentence(Block(diagonal=torch.tensor([1.0, torch.nan]), examples=1)) == (
        f"{start}the diagonal Fisher has 1 of 2 values that are NaN or infinite; look for a model that overflows, and "
        f"{again}."
    )
    assert sentence(Block(inputs=EYE, rows=1, layout="linear", shape=(2, 3)), shape=(4, 3)) == (
        f"{start}the statistics were collected for the shape [2, 3] and the model's tensor has [4, 3]; {again} from "
        "this model."
    )
    assert sentence(Block(diagonal=EYE.int(), examples=1)) == (
        f"{start}the diagonal Fisher is stored as int32, not as real numbers."
    )


def test_a_shape_that_only_the_model_knows_is_checked_too():
    bare = Block(inputs=EYE, rows=1, layout="linear")
    assert check_block(bare, "w", "s", shape=(2, 3))
    assert "A has the shape [3, 3], expected [4, 4]" in sentence(bare, shape=(2, 4))
    assert "is no linear weight" in sentence(bare, shape=(3,))


def test_blocks_in_memory_are_checked_when_they_are_asked_for():
    found = TaskStatistics("mnist", {"w": Block(diagonal=-EYE, inputs=EYE, rows=1, examples=1, layout="linear")})
    assert found.block("w", ["gram"]) is not None
    with pytest.raises(StatisticsError, match="The statistics of 'mnist', tensor 'w': the diagonal Fisher has -1"):
        found.block("w", ["diag"])


def test_an_unknown_fisher_is_refused():
    with pytest.raises(StatisticsError, match=r"no Fisher 'exakt'. Did you mean 'exact'"):
        TaskStatistics("mnist", {}, fisher="exakt")
