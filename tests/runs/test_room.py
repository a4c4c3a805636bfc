"""What is kept under MERGELAB_HOME has a cap: the oldest goes, the newest and what is being written never."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from training.learn_zoo import moved_zoo

from mergelab.checkpoints.whole import whole_folder
from mergelab.recipe import ModelEntry, Recipe
from mergelab.runs import Bench, learnt, merged_through, room
from mergelab.tasks import load_suite

TASKS = ("colour", "grey")
NAMES = re.compile(r"set-\d")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def kept(name: str, age: int, size: int = 100, *, file: bool = False) -> Path:
    """A kept folder (or file) of ``size`` bytes, not used for ``age`` seconds."""
    path = room.place_of("through") / name
    if file:
        path.write_bytes(b"x" * size)
    else:
        path.mkdir()
        (path / "a.safetensors").write_bytes(b"x" * (size // 2))
        (path / "b.safetensors").write_bytes(b"x" * (size - size // 2))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def capped(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("MERGELAB_THROUGH_GB", str(size / 1e9))


@pytest.mark.parametrize("file", [False, True])
def test_what_was_not_used_longest_goes_until_the_rest_fits(monkeypatch, file) -> None:
    paths = [kept(f"set-{i}", age, file=file) for i, age in enumerate((10, 40, 20, 30))]
    capped(monkeypatch, 250)
    assert room.make_room("through", NAMES, paths[0]) == [paths[1], paths[3]]
    assert {p.name for p in room.place_of("through").iterdir()} == {"set-0", "set-2"}
    assert room.make_room("through", NAMES, paths[0]) == []


def test_use_makes_new_again(monkeypatch) -> None:
    old, newer = kept("set-1", 40), kept("set-2", 30)
    assert room.used(old) == old
    capped(monkeypatch, 150)
    assert room.make_room("through", NAMES, old) == [newer]
    room.used(newer)  # gone meanwhile: nothing happens


def test_the_newest_stays_however_old_or_large_it_is(monkeypatch) -> None:
    newest, other = kept("set-1", 40, 1000), kept("set-2", 10)
    capped(monkeypatch, 50)
    assert room.make_room("through", NAMES, newest) == [other] and newest.is_dir()


def test_what_is_being_written_and_what_is_not_ours_stays(monkeypatch) -> None:
    mine, foreign = kept("set-1", 1), kept("notes", 99)
    capped(monkeypatch, 0)
    with whole_folder(room.place_of("through") / "set-2") as partial:
        (partial / "half").write_bytes(b"x" * 500)
        os.utime(partial, (1, 1))
        assert room.make_room("through", NAMES, mine) == [] and partial.is_dir()
    assert foreign.is_dir() and (room.place_of("through") / "set-2" / "half").is_file()


def test_half_of_a_folder_is_never_found_under_its_name(monkeypatch) -> None:
    old, new = kept("set-1", 40), kept("set-2", 1)
    capped(monkeypatch, 100)

    def dies(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            room.make_room("through", NAMES, new)
    assert not old.exists()
    with whole_folder(room.place_of("through") / "set-3") as partial:  # the next write sweeps it away
        (partial / "x").write_bytes(b"x")
    assert {p.name for p in room.place_of("through").iterdir()} == {"set-2", "set-3"}


@pytest.mark.parametrize(("said", "limit"), [("2", 2e9), ("0", 0), ("inf", float("inf")), ("", 8e9), ("lots", 8e9),
                                             ("nan", 8e9), ("-1", 8e9)])  # fmt: skip
def test_a_cap_is_said_in_gigabytes(monkeypatch, said, limit) -> None:
    monkeypatch.setenv("MERGELAB_THROUGH_GB", said)
    assert room.limit_of("through") == limit
    assert room.limit_of("statistics") == 16e9


# ---- what is kept of learning and of merges that collect -------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    zoo = moved_zoo(tmp_path_factory.mktemp("room") / "tiny")
    return Bench(str(zoo / "base"), {t: str(zoo / "experts" / t) for t in TASKS}, load_suite(zoo), device="cpu")


def recipe_of(bench: Bench, method: str, **parameters: object) -> Recipe:
    models = tuple(ModelEntry(bench.experts[t], t) for t in TASKS)
    return Recipe(method, models, base_model=bench.base, parameters=parameters)  # type: ignore[arg-type]


def test_collections_through_merged_layers_make_room(bench, monkeypatch) -> None:
    first, second, third = (recipe_of(bench, "regmean_pp", examples=n) for n in (4, 5, 6))
    folders = [merged_through.through_folder(bench, recipe) for recipe in (first, second, third)]
    merged_through.collect_through(bench, first)
    merged_through.collect_through(bench, second)
    assert merged_through._NAME.fullmatch(folders[0].name)
    for age, folder in enumerate(folders[:2]):
        os.utime(folder, (1e9 - age, 1e9 - age))
    bench.plan(second)  # the second was made before the first, and used since
    size = sum(file.stat().st_size for file in folders[1].iterdir())
    monkeypatch.setenv("MERGELAB_THROUGH_GB", str(2.5 * size / 1e9))
    merged_through.collect_through(bench, third)
    assert [folder.is_dir() for folder in folders] == [False, True, True]
    monkeypatch.setenv("MERGELAB_THROUGH_GB", "0")
    merged_through.collect_through(bench, first)
    assert [folder.is_dir() for folder in folders] == [True, False, False]


def test_learned_coefficients_make_room(bench, monkeypatch) -> None:
    recipes = [recipe_of(bench, "adamerging", steps=steps, examples=4) for steps in (1, 2, 3)]
    files = [learnt._path(bench, recipe) for recipe in recipes]
    for age, (recipe, file) in enumerate(zip(recipes[:2], files[:2], strict=True)):
        learnt.learned_for(bench, recipe)
        os.utime(file, (1e9 - age, 1e9 - age))
    assert learnt._NAME.fullmatch(files[0].name)
    assert learnt.kept_learned(bench, recipes[1]) is not None
    size = sum(file.stat().st_size for file in files[:2])
    monkeypatch.setenv("MERGELAB_LEARNED_GB", str(1.4 * size / 1e9))
    learnt.learned_for(bench, recipes[2])
    assert [file.is_file() for file in files] == [False, True, True]
    assert learnt.kept_learned(bench, recipes[0]) is None
    monkeypatch.setenv("MERGELAB_LEARNED_GB", "0")
    learnt.learned_for(bench, recipes[0])
    assert [file.is_file() for file in files] == [True, False, False]
