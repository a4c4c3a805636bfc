"""The page's verbs over HTTP, as a program meets them."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request

import pytest
from dashboard.fake_lab import TASKS

from mergelab.recipe import Recipe

RECIPE = Recipe(
    "task_arithmetic",
    tuple(f"zoo:starter/{task}" for task in TASKS),
    base_model="zoo:starter/base",
    parameters={"lambda": 0.5},
    suite="starter",
)


def refused(client, *args, api_name, **kwargs) -> str:
    """The message of an expected refusal; it must be a sentence, not a trace."""
    with pytest.raises(Exception) as caught:
        client.predict(*args, api_name=api_name, **kwargs)
    message = str(caught.value)
    assert "Traceback" not in message and 'File "' not in message and ".py" not in message
    assert len(message) > 20
    return message


def test_methods(client):
    found = client.predict(api_name="/methods")
    assert {"linear", "task_arithmetic", "ties"} <= {method["name"] for method in found}
    assert {"name", "title", "summary", "formula", "paper", "parameters"} <= set(found[0])


def test_merge_evaluate_measures_what_the_recipe_says(client):
    found = client.predict(RECIPE.to_yaml(), 40, api_name="/merge_evaluate")
    assert found["tasks"]["mnist"]["accuracy"] == 0.9 and found["tasks"]["mnist"]["n"] == 40
    assert found["hash"] == RECIPE.hash
    other = client.predict(RECIPE.replace(parameters={"lambda": 0.2}).to_json(), 40, api_name="/merge_evaluate")
    assert other["tasks"]["mnist"]["accuracy"] == pytest.approx(0.6)


def test_whole_test_sets_come_with_unseen_tasks(client):
    found = client.predict(RECIPE.to_yaml(), 0, api_name="/merge_evaluate")
    assert found["unseen"]["accuracy"] == 0.33


def test_predict_a_sample_and_a_picture(client, picture_file):
    found = client.predict(RECIPE.to_yaml(), "mnist", 2, "", api_name="/predict")
    assert found["truth"] == "gamma" and max(found["models"]["expert"], key=found["models"]["expert"].get) == "gamma"
    image = base64.b64encode(picture_file.read_bytes()).decode()
    found = client.predict(RECIPE.to_yaml(), "mnist", 0, image, api_name="/predict")
    assert set(found["models"]) == {"base", "expert", "merged"}
    assert sum(found["models"]["merged"].values()) == pytest.approx(1.0)


def test_preflight_and_geometry(client):
    assert client.predict(RECIPE.to_yaml(), api_name="/preflight")["ok"] is True
    found = client.predict(api_name="/geometry")
    assert found["names"] == list(TASKS) and set(found["cosine"]) == {"whole model", "block 0", "block 1"}


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("", "recipe"),
        ("not a recipe", "merge_method"),
        ("merge_method: tise\nmodels: [zoo:starter/mnist]", "ties"),
        ("merge_method: linear\nmodels: []", "empty"),
        ("merge_method: linear\nmodls: []\nmodels: [a]", "modls"),
        ("merge_method: task_arithmetic\nbase_model: b\nmodels: [a]\nparameters: {lambda: 99}", "range"),
        ("merge_method: task_arithmetic\nmodels: [zoo:starter/mnist]", "base"),
        ("merge_method: task_arithmetic\nbase_model: b\nmodels: [a]\nparameters: {lambda: .nan}", "lambda"),
        ("x" * 70_000, "64"),
    ],
)  # fmt: skip
def test_a_bad_recipe_gets_a_sentence(client, recipe, word):
    assert word.lower() in refused(client, recipe, 40, api_name="/merge_evaluate").lower()


def test_other_bad_input_gets_a_sentence(client):
    assert "per_task" in refused(client, RECIPE.to_yaml(), -3, api_name="/merge_evaluate")
    assert "nope" in refused(client, RECIPE.to_yaml(), "nope", 0, "", api_name="/predict")
    not_a_picture = base64.b64encode(b"hello").decode()
    assert "picture" in refused(client, RECIPE.to_yaml(), "mnist", 0, not_a_picture, api_name="/predict")
    assert "base64" in refused(client, RECIPE.to_yaml(), "mnist", 0, "***", api_name="/predict")


def test_an_unexpected_error_is_logged_and_not_shown(client, lab, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("secret detail of /home/someone/file.py")

    monkeypatch.setattr(lab.bench, "evaluate", broken)
    message = refused(client, RECIPE.to_yaml(), 40, api_name="/merge_evaluate")
    assert "secret" not in message and "log" in message
    assert "secret detail" in caplog.text


def test_many_at_once_each_get_their_own_answer(url):
    from gradio_client import Client

    answers: dict[float, float] = {}

    def ask(scale: float) -> None:
        recipe = RECIPE.replace(parameters={"lambda": scale})
        found = Client(url, verbose=False).predict(recipe.to_yaml(), 40, api_name="/merge_evaluate")
        answers[scale] = found["tasks"]["mnist"]["accuracy"]

    threads = [threading.Thread(target=ask, args=(scale,)) for scale in (0.1, 0.2, 0.3, 0.4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {scale: pytest.approx(0.9 - (0.5 - scale)) for scale in (0.1, 0.2, 0.3, 0.4)}


def fetch(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_this_machine_is_served(url):
    for path in ("/etc/passwd", "../../etc/passwd", __file__):
        assert fetch(f"{url}/gradio_api/file={path}") in (403, 404)


def test_the_page_names_no_address_off_the_machine(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    for word in ("fonts.googleapis", "cdn.", "cdnjs", "unpkg", "huggingface.co/front"):
        assert word not in text


def test_the_config_carries_no_path_of_this_machine(url, settings):
    with urllib.request.urlopen(f"{url}/config", timeout=10) as answer:
        text = json.dumps(json.loads(answer.read()).get("components"))
    assert str(settings.temp) not in text
