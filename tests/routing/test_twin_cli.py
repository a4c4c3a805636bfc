"""The verb twin as a program that others call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_routed import CLASSES, document, pictures, write_zoo

from mergelab import cli, load, load_routed


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def recipe(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "twin.json"
    path.write_text(json.dumps(document(zoo)))
    return path


@pytest.fixture(scope="module")
def built(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "routed"
    assert cli.main(["twin", "build", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "green.png"
    Image.fromarray(np.kron(pictures("greens", 1)[0][0], np.ones((2, 2, 1), dtype=np.uint8))).save(path)
    return path


def told(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_build_says_what_it_made(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "routed"
    arguments = ["twin", "build", str(recipe), "--out", str(out), "--device", "cpu"]
    assert cli.main([*arguments, "--rank", "1", "--json"]) == 0
    made = told(capsys)
    assert Path(made["out"]) == out and set(made["tasks"]) == set(CLASSES)
    assert {task["largest_rank"] for task in made["tasks"].values()} == {1}
    routed = load_routed(out)
    assert made["bytes"] == routed.bytes() and made["routers"]["router"]["kind"] == "centroid"
    assert made["data_used"].endswith("no class labels")

    before = (out / "routed.json").read_bytes()
    assert cli.main(arguments) == 2
    assert "not empty" in capsys.readouterr().err and (out / "routed.json").read_bytes() == before
    assert cli.main([*arguments, "--overwrite", "--energy", "0.5", "--preset", "paper", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert "energy kept %" in text and "right on held-out items" in text and "Next: " in text
    stored = load_routed(out).settings["recipe"]
    assert (stored["preset"], stored["seed"], stored["exclusive"]["energy"]) == ("paper", 3, 0.5)


def test_build_refuses_before_it_works(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken = tmp_path / "broken.yaml"
    broken.write_text("merge_method: ties\nmodels: [a]\nexclusive: {rnk: 1}\n")
    cases = [([str(broken), "--out", str(tmp_path / "x")], "'rank'"),
             ([str(recipe), "--out", str(recipe)], "not a folder"),
             ([str(recipe), "--out", str(tmp_path / "x"), "--rank", "-1"], "rank"),
             ([str(recipe), "--out", str(tmp_path / "x"), "--suite", "startr"], "startr")]  # fmt: skip
    for arguments, named in cases:
        assert cli.main(["twin", "build", *arguments]) == 2
        error = capsys.readouterr().err
        assert named in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_show_and_its_json(built: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["twin", "show", str(built)]) == 0
    text = capsys.readouterr().out
    assert all(task in text for task in CLASSES) and "exclusive" in text and "early router" in text
    assert cli.main(["twin", "show", str(built), "--json"]) == 0
    shown = told(capsys)
    assert shown["bytes"] == load_routed(built).bytes()
    assert all(0 < task["kept"] < 1 for task in shown["tasks"].values())


@pytest.mark.parametrize("mode", ["per_input", "group", "adapter", "one_pass"])
def test_evaluate_keeps_the_contract_in_every_mode(
    mode: str, built: Path, zoo: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["twin", "evaluate", str(built), "--suite", str(zoo), "--mode", mode, "--limit", "6", "--device", "cpu"]
    assert cli.main([*arguments, "--json"]) == 0
    found = told(capsys)
    assert {"suite", "source", "tasks", "seen", "unseen", "data_used", "seconds"} <= set(found)
    assert (found["mode"], found["head"]) == (mode, "router_argmax")
    for task in found["tasks"].values():
        assert {"seen", "n", "accuracy", "interval", "normalised"} <= set(task) and task["n"] == 6
    assert found["router"]["accuracy"] == pytest.approx(
        np.mean([found["router"]["confusion"][task][task] for task in CLASSES]), abs=1e-3
    )


def test_an_oracle_head_is_never_shown_without_its_label(built: Path, zoo: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["twin", "evaluate", str(built), "--suite", str(zoo), "--limit", "4", "--device", "cpu"]
    assert cli.main([*arguments, "--head", "oracle"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert all("oracle head" in row for row in rows if row.startswith(tuple(CLASSES)))
    assert any(row.startswith("head") and "oracle" in row for row in rows)
    assert cli.main([*arguments, "--head", "oracle", "--json"]) == 0
    assert told(capsys)["head"] == "oracle"
    for head in ("router_argmax", "max_logit"):
        assert cli.main([*arguments, "--head", head]) == 0
        assert "oracle" not in capsys.readouterr().out


def test_evaluate_with_given_weights(built: Path, zoo: Path, capsys: pytest.CaptureFixture[str]):
    base = ["twin", "evaluate", str(built), "--suite", str(zoo), "--limit", "4", "--device", "cpu", "--json"]
    for weights, first in (("uniform", 1 / 3), ("0.5,0.25,0.25", 0.5), ("oracle", 1.0)):
        assert cli.main([*base, "--weights", weights, "--head", "oracle"]) == 0
        assert told(capsys)["router"]["weights"]["reds"]["reds"] == pytest.approx(first, abs=1e-3)
    assert cli.main([*base, "--tasks", "reds,blues"]) == 0
    assert set(told(capsys)["tasks"]) == {"reds", "blues"}
    assert cli.main([*base, "--weights", "1,2"]) == 2
    assert "3 numbers" in capsys.readouterr().err


def test_predict_shows_weights_and_classes(built: Path, image: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["twin", "predict", str(built), str(image), str(image), "--json", "--device", "cpu"]) == 0
    first, second = told(capsys)
    assert first == second and first["task"] == "greens"
    assert sum(first["weights"].values()) == pytest.approx(1, abs=1e-4)
    assert max(first["weights"], key=first["weights"].get) == "greens"
    assert [top["class"] for top in first["top"]] == [f"greens {top['index']}" for top in first["top"]]
    assert sum(top["probability"] for top in first["top"]) == pytest.approx(1, abs=1e-3)
    assert cli.main(["twin", "predict", str(built), str(image), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "█" in text and "greens" in text and "router finds likeliest" in text

    asked = [
        "twin",
        "predict",
        str(built),
        str(image),
        "--device",
        "cpu",
        "--task",
        "blues",
        "--weights",
        "0,0,1",
        "--json",
    ]
    assert cli.main(asked) == 0
    (one,) = told(capsys)
    assert one["task"] == "blues" and one["weights"] == {"reds": 0, "greens": 0, "blues": 1} and one["mode"] == "static"
    assert "--task" in one["policy"]


def test_export_gives_an_ordinary_checkpoint(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for weights, name in (("0.5,0.5,0", "half"), ("uniform", "all"), ("greens", "one")):
        out = tmp_path / name
        assert cli.main(["twin", "export", str(built), "--weights", weights, "--out", str(out)]) == 0
        assert set(load(out)) == set(load_routed(built).shared)
    assert cli.main(["twin", "export", str(built), "--weights", "grens", "--out", str(tmp_path / "x")]) == 2
    assert "greens" in capsys.readouterr().err


def test_what_is_wrong_is_one_sentence_and_status_2(
    built: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cases = [
        (["show", str(tmp_path / "nowhere")], "nowhere"), (["show", str(tmp_path)], "routed.json"),
        (["predict", str(built), str(text)], "picture"),
        (["predict", str(built), str(tmp_path / "none.png")], "none.png"),
        (["predict", str(built), str(image), "--task", "violets"], "violets"),
        (["predict", str(built), str(image), "--weights", "nan,0,0"], "finite"),
        (["evaluate", str(built), "--suite", "startr"], "startr"),
        (["evaluate", str(built), "--tasks", "violets"], "violets"),
    ]  # fmt: skip
    for arguments, named in cases:
        assert cli.main(["twin", *arguments]) == 2, arguments
        out, error = capsys.readouterr()
        assert named in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
        assert out == ""


@pytest.mark.parametrize("action", [[], ["build"], ["evaluate"], ["predict"], ["export"], ["show"]])
def test_every_action_has_help(action: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["twin", *action, "--help"])
    assert ended.value.code == 0 and len(capsys.readouterr().out) > 100
    assert cli.main(["twin"]) == 0 and "build" in capsys.readouterr().out


def test_the_command_line_needs_no_torch_to_speak(root: Path):
    import subprocess
    import sys

    code = (
        "import sys; from mergelab import cli; cli._parser()\n"
        "print([m for m in ('torch', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_compare_puts_what_it_is_compared_with_in_one_table(built: Path, zoo: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["twin", "compare", str(built), "--suite", str(zoo), "--limit", "6", "--device", "cpu"]
    only = ["--only", "static_shared,shared_dynamic,all_experts,oracle_top1"]
    assert cli.main([*arguments, *only, "--json"]) == 0
    rows = {row["name"]: row for row in told(capsys)}
    assert list(rows) == ["static_shared", "shared_dynamic", "all_experts", "oracle_top1"]
    assert rows["shared_dynamic"]["bytes"] == load_routed(built).bytes()["total"] - _early(built)
    assert rows["static_shared"]["bytes"] < rows["shared_dynamic"]["bytes"]
    assert rows["oracle_top1"]["router"] == 1.0 and rows["oracle_top1"]["needs_task_id"]
    assert not rows["shared_dynamic"]["needs_task_id"]
    assert cli.main([*arguments, "--only", "static_shared"]) == 0
    assert "data used" in capsys.readouterr().out
    assert cli.main([*arguments, "--only", "shared_dynamc"]) == 2
    assert "shared_dynamic" in capsys.readouterr().err


def _early(folder: Path) -> int:
    early = load_routed(folder).early_router
    return sum(t.numel() * t.element_size() for t in early.state().values()) if early else 0


def test_with_all_weights_zero_a_task_must_be_named(built: Path, image: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["twin", "predict", str(built), str(image), "--weights", "0,0,0", "--device", "cpu"]
    assert cli.main(arguments) == 2
    assert "--task" in capsys.readouterr().err
    assert cli.main([*arguments, "--task", next(iter(CLASSES))]) == 0
