"""Opening zoos: names, folders, and listings that must not be trusted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mergelab.zoo import ZooError, list_zoos, open_zoo


def listing(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    said = {"format": "mergelab-zoo/1", "name": folder.name, "title": "T", "base": "base",
            "experts": {"a": "experts/a"}, "suite": "suite", **changes}  # fmt: skip
    (folder / "zoo.json").write_text(json.dumps(said))
    return folder


def test_a_folder_opens_with_paths_and_a_name_with_zoo_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = open_zoo(listing(tmp_path / "one"))
    assert (zoo.base, zoo.experts) == (str(tmp_path / "one" / "base"), {"a": str(tmp_path / "one" / "experts" / "a")})
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    listing(tmp_path / "home" / "zoo" / "mine")
    for source in ("mine", "zoo:mine", tmp_path / "home" / "zoo" / "mine"):
        assert open_zoo(source).experts == {"a": "zoo:mine/a"}
    assert "mine" in [zoo.name for zoo in list_zoos()]
    assert open_zoo("mine").measured == {}


def test_an_unknown_zoo_is_said_with_a_suggestion() -> None:
    with pytest.raises(ZooError, match=r"no zoo 'startr'\. Did you mean 'starter'\?"):
        open_zoo("startr")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other/9"}, "this version reads 'mergelab-zoo/1'"),
        ({"experts": {}}, "lists no experts"),
        ({"experts": {"a": "../../etc"}}, "not inside the zoo"),
        ({"suite": "/etc"}, "not inside the zoo"),
        ({"experts": {"a": 3}}, "not inside the zoo"),
    ],
)
def test_a_bad_listing_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ZooError, match=words):
        open_zoo(listing(tmp_path / "z", **changes))


def test_a_listing_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zoo.json").write_text("{" * 100_000)
    with pytest.raises(ZooError, match="not valid JSON"):
        open_zoo(tmp_path)


def test_opening_a_zoo_imports_no_torch() -> None:
    code = "import sys; from mergelab.zoo import open_zoo, list_zoos; list_zoos(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
