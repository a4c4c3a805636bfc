from __future__ import annotations

import math

import pytest
import torch

from mergelab.errors import TaskError
from mergelab.tasks.corrupt import STRENGTHS, Corruption, corruptions


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Soft blobs with some texture, 32 px."""
    g = torch.Generator().manual_seed(0)
    soft = torch.nn.functional.interpolate(torch.rand(6, 3, 5, 5, generator=g), (32, 32), mode="bilinear")
    rough = 0.25 * torch.rand(6, 3, 32, 32, generator=g)
    return ((0.75 * soft + rough) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((before.float() - after.float()).abs().mean())


@pytest.mark.parametrize("name", corruptions())
def test_a_higher_severity_changes_a_picture_more(name: str, pictures: torch.Tensor):
    changes = [change(pictures, Corruption(name, severity)(pictures)) for severity in (1, 2, 3)]
    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("name", corruptions())
def test_the_same_type_shape_and_result_whatever_else_is_in_the_batch(name: str, pictures: torch.Tensor):
    spoil, before = Corruption(name, 2, seed=3), pictures.clone()
    found = spoil(pictures)
    assert found.dtype == torch.uint8 and found.shape == pictures.shape
    assert torch.equal(pictures, before)  # not in place
    assert torch.equal(found, spoil(pictures))
    assert torch.equal(spoil(pictures.flip(0)).flip(0), found)
    assert torch.equal(spoil(pictures[2:3]), found[2:3])


def test_noise_depends_on_the_seed_and_has_the_stated_deviation():
    grey = torch.full((4, 32, 32, 3), 128, dtype=torch.uint8)
    grey[1:] += torch.arange(1, 4, dtype=torch.uint8).view(3, 1, 1, 1)  # four pictures, four noises
    found = Corruption("gaussian_noise", 1)(grey)
    assert not torch.equal(found, Corruption("gaussian_noise", 1, seed=1)(grey))
    noise = (found.float() - grey.float()) / 255
    assert float(noise.std()) == pytest.approx(STRENGTHS["gaussian_noise"][0], rel=0.03)
    assert abs(float(noise.mean())) < 0.005
    assert not torch.equal(noise[0], noise[1])


def test_contrast_shrinks_the_distance_to_the_mean_of_each_colour():
    picture = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    picture[0, 0, :, 0] = 200  # red: 200, 200, 0, 0 around 100
    found = Corruption("contrast", 1)(picture)
    assert STRENGTHS["contrast"][0] == 0.5
    assert found[0, :, :, 0].tolist() == [[150, 150], [50, 50]]
    assert not found[..., 1:].any()


def test_blur_keeps_the_sum_and_spreads_a_point_as_a_gaussian():
    picture = torch.zeros(1, 32, 32, dtype=torch.uint8)
    picture[0, 16, 16] = 255
    found = Corruption("blur", 2)(picture)[0].float()
    sigma = STRENGTHS["blur"][1]
    assert 2 < 3 * sigma <= 3
    line = torch.tensor([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-3, 4)])
    line = line / line.sum()
    assert torch.allclose(found[13:20, 13:20], 255 * torch.outer(line, line), atol=0.51)
    assert found[:13].sum() == 0


def test_pixelate_paints_every_block_in_its_mean():
    picture = torch.arange(100, dtype=torch.uint8).reshape(1, 10, 10)
    found = Corruption("pixelate", 3)(picture)[0]  # 0.45 of 10: four blocks a side
    assert int(10 * STRENGTHS["pixelate"][2]) == 4
    assert len({tuple(row) for row in found.tolist()}) == 4
    assert found[0, 0] == picture[0, :3, :3].float().mean().round()


@pytest.mark.parametrize("name", ["blur", "contrast", "pixelate"])
def test_a_flat_grey_picture_and_grey_colours_stay_grey(name: str, pictures: torch.Tensor):
    flat = torch.full((2, 20, 20, 3), 77, dtype=torch.uint8)
    assert torch.equal(Corruption(name, 3)(flat), flat)
    grey = pictures[..., 0]
    alone = Corruption(name, 2)(grey)
    assert alone.shape == grey.shape
    assert torch.equal(
        Corruption(name, 2)(grey.unsqueeze(-1).expand(-1, -1, -1, 3)), alone.unsqueeze(-1).expand(-1, -1, -1, 3)
    )


@pytest.mark.parametrize("name", corruptions())
def test_no_pictures_and_tiny_pictures(name: str):
    assert Corruption(name, 3)(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)).shape == (0, 8, 8, 3)
    assert Corruption(name, 3)(torch.full((1, 1, 1, 3), 9, dtype=torch.uint8)).shape == (1, 1, 1, 3)


def test_what_is_no_corruption_or_no_picture_is_refused():
    with pytest.raises(TaskError, match="Did you mean 'blur'"):
        Corruption("blurr", 1)
    with pytest.raises(TaskError, match="1, 2 or 3, not 4"):
        Corruption("blur", 4)
    with pytest.raises(TaskError, match="not True"):
        Corruption("blur", True)
    for wrong in (torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8, 4, dtype=torch.uint8), [[1]]):
        with pytest.raises(TaskError, match="uint8"):
            Corruption("blur", 1)(wrong)
