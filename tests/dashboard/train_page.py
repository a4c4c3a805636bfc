"""What the tests of the Train tab share: fields, a selection, a run's document, a lab whose training is made up."""

from __future__ import annotations

import json
import re
import time

from dashboard.fake_lab import TASKS, FakeLab
from dashboard.fake_training import FakeTraining, document

from mergelab.dashboard import train_form
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.dashboard.train import USUAL
from mergelab.recipe import Recipe

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "/a/zoo/suite",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {},
}  # fmt: skip
METHODS = Lab(Settings()).methods()
MERGE = Recipe("ties", tuple(SELECTION["experts"].values()), base_model="zoo:starter/base", suite="starter")
VALUES = {**USUAL, "tasks": ["mnist", "fashion", "emoji"]}
SOON = 20.0


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()


def recipe_of(**more):
    return train_form.recipe_of({**VALUES, **more}, SELECTION, MERGE, 40)


def wait(until) -> None:
    end = time.monotonic() + SOON
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


FOUND = document(recipe_of(), ("joint", "one_shot"))
TITLES = {"ties": "TIES"}


def traces(plot) -> dict:
    return {trace["name"]: trace for trace in json.loads(plot.plot)["data"]}


class TrainLab(FakeLab):
    def __init__(self, settings):
        super().__init__(settings)
        self.train_bench = FakeTraining()

    def training(self, selection):
        return self.train_bench


def handler(page, name: str):
    """A handler of the Train tab, or of what it feeds, by its name."""
    ours = ("mergelab.dashboard.train", "mergelab.dashboard.geometry", "mergelab.dashboard.predict")
    found = {fn.fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == name}
    return next(fn for fn in found if fn.__module__.startswith(ours))
