"""The theorem lab: is a task vector a multiple of the gradient, recorded at several rates, and here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import Cancelled, MergeLabError
from . import train_theorem_views as shown
from . import views
from .drafts import suite_of
from .errors import sentence
from .jobs import Done, Step
from .page import CHEAP, PRIVATE, Page, busy, session_of

_LEAD = (
    '<p class="ml-note">One full-batch step of gradient descent makes a task vector that is exactly −η times the '
    "gradient, so the mean of task vectors is one step of joint training: the one-step identity of FedAvg (local SGD). "
    "After k steps −kη times the gradient is only the first order, and of Adam it says nothing.</p>"
)
#: What is run here unless a person says otherwise: small enough for a few minutes on two cores.
USUAL: dict[str, Any] = {"tasks": 2, "images": 16, "rate": 0.001, "optimisers": ["gd", "adam"], "steps": (1, 2, 5, 10)}
_HERE = "here"
_LABS: dict[str, Any] = {"concurrency_id": "theorem", "concurrency_limit": 4, "show_progress": "hidden"}
_PIECES = ("text", "errors", "cosines", "accuracy", "table", "more")


def build(page: Page, first: dict[str, Any], out: dict[str, Any]) -> None:
    """Lay it out, closed; its pieces are in ``out`` under names that begin with ``theorem``."""
    recorded = page.lab.theorems()
    out |= {"theorem": gr.State(None), "theorem_own": gr.State(None)}
    with gr.Accordion("Theorem lab", open=False, elem_id="train-theorem") as out["theorem_box"]:
        gr.HTML(_LEAD)
        with gr.Row(equal_height=False):
            out["theorem_of"] = gr.Radio(
                [(title, name) for name, title in recorded.items()], value=next(iter(recorded), None),
                label="Learning rate", visible=bool(recorded), elem_id="theorem-of", min_width=240,
            )  # fmt: skip
            out["theorem_part"] = gr.Dropdown(shown.parts(None), value=shown.MEAN, label="Task vector",
                                              visible=bool(recorded), elem_id="theorem-part", min_width=200,
                                              filterable=False)  # fmt: skip
        out["theorem_said"] = gr.HTML("", elem_id="theorem-said")
        with gr.Column(visible=False, elem_id="theorem-view") as out["theorem_view"]:
            _view(out)
        _here(first, out)


def _view(out: dict[str, Any]) -> None:
    out["theorem_text"] = gr.Markdown("", elem_id="theorem-sentence")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            gr.HTML(views.heading("Error: ‖τ + kηg‖ / ‖kηg‖"))
            out["theorem_errors"] = views.place("Relative error against steps", "theorem-errors")
        with gr.Column(min_width=300):
            gr.HTML(views.heading("Cosine of τ and −g"))
            out["theorem_cosines"] = views.place("Cosine against steps", "theorem-cosines")
    out["theorem_table"] = gr.HTML("", elem_id="theorem-table")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            gr.HTML(views.heading("Accuracy of the merge"))
            out["theorem_accuracy"] = views.place("Accuracy of the merge against steps", "theorem-accuracy")
        with gr.Column(min_width=300):
            out["theorem_more"] = gr.HTML("", elem_id="theorem-more")


def _here(first: dict[str, Any], out: dict[str, Any]) -> None:
    names = [name for _, name in first["tasks"]]
    gr.HTML(views.heading("On these models, here"))
    with gr.Row(equal_height=False):
        out["theorem_tasks"] = gr.CheckboxGroup(first["tasks"], value=names[: USUAL["tasks"]], label="Tasks",
                                                elem_id="theorem-tasks", min_width=280)  # fmt: skip
        out["theorem_optimisers"] = gr.CheckboxGroup(
            [(title, name) for name, title in shown.NAMES.items()], value=USUAL["optimisers"], label="Optimisers",
            elem_id="theorem-optimisers", min_width=280,
        )  # fmt: skip
    with gr.Row(equal_height=False):
        out["theorem_rate"] = gr.Number(
            USUAL["rate"], label="Learning rate η", elem_id="theorem-rate", min_width=140,
            info="Of gradient descent; Adam’s is 1e-5.",
        )  # fmt: skip
        out["theorem_images"] = gr.Slider(4, 64, value=USUAL["images"], step=4, label="Pictures a task",
                                          elem_id="theorem-images", min_width=200, buttons=[])  # fmt: skip
    out["theorem_cost"] = gr.HTML(_cost(names[: USUAL["tasks"]], USUAL["images"], USUAL["optimisers"]),
                                  elem_id="theorem-cost")  # fmt: skip
    with gr.Row(elem_id="theorem-head"):
        out["theorem_go"] = gr.Button("Run it here", elem_id="theorem-go", min_width=120, scale=0)
        out["theorem_stop"] = gr.Button("Stop", variant="stop", elem_id="theorem-stop", min_width=70, scale=0,
                                        interactive=False)  # fmt: skip
    out["theorem_job"] = gr.HTML("", elem_id="theorem-job")


def _count(tasks: list[str], images: float, optimisers: list[str]) -> int:
    return shown.gradients(len(tasks), int(images), len(optimisers), USUAL["steps"][-1], gd="gd" in optimisers)


def _cost(tasks: list[str], images: float, optimisers: list[str]) -> str:
    return shown.cost_line(_count(tasks, images, optimisers))


# ---- events ----------------------------------------------------------------------------------------------------------


def wire(page: Page, out: dict[str, Any]) -> None:
    view = [out[f"theorem_{name}"] for name in _PIECES]
    _wire_here(page, out)

    def open_lab(name: str | None, own: Any) -> list[Any]:
        """The lab that is chosen."""
        if name is None:
            return [None, views.note("No lab was recorded; run it here.")]
        try:
            return [own if name == _HERE else page.lab.theorem(name), ""]
        except Exception as error:
            return [None, views.status(sentence(error), "error")]

    def show_lab(document: Any, part: str) -> list[Any]:
        known = shown.parts(document)
        part = part if part in [name for _, name in known] else shown.MEAN
        return [gr.update(visible=bool(document)), gr.update(choices=known, value=part, visible=bool(document)),
                *shown.everything(document, part)]  # fmt: skip

    def show_part(document: Any, part: str) -> list[Any]:
        return shown.everything(document, part)

    chosen, found = [out["theorem_of"], out["theorem_own"]], [out["theorem"], out["theorem_said"]]
    gr.on([out["theorem_box"].expand, out["theorem_of"].change], open_lab, chosen, found, **CHEAP, **PRIVATE)
    out["theorem"].change(
        show_lab, [out["theorem"], out["theorem_part"]], [out["theorem_view"], out["theorem_part"], *view],
        trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["theorem_part"].input(show_part, [out["theorem"], out["theorem_part"]], view, **CHEAP, **PRIVATE)


def _wire_here(page: Page, out: dict[str, Any]) -> None:
    fields = [out[f"theorem_{name}"] for name in ("tasks", "images", "optimisers")]

    def cost_of_lab(tasks: list[str], images: float, optimisers: list[str]) -> str:
        return _cost(tasks, images, optimisers)

    def run_lab(  # noqa: PLR0917
        tasks: list[str], images: float, optimisers: list[str], rate: float, selection: dict[str, Any],
        request: gr.Request,
    ) -> Iterator[Any]:  # fmt: skip
        """A lab of the visitor's own, with progress; its document is a choice among the recorded ones."""
        try:
            recipe = recipe_of(page, tasks, images, optimisers, selection)

            def work(progress: Any, stop: Any) -> Any:
                return page.lab.training(selection).theorem(
                    recipe, rate=rate, steps=USUAL["steps"], optimisers=tuple(optimisers), progress=progress, stop=stop
                )

            yield [views.status("Starting …", "busy"), *_buttons(True), *views.skip(2)]
            for item in page.lab.runs.jobs.run(_job(request), work):
                if isinstance(item, Step):
                    yield [busy(item), *views.skip(4)]
                elif isinstance(item, Done):
                    said = views.status(f"Done in {item.seconds:.0f} s.")
                    choices = [(title, name) for name, title in page.lab.theorems().items()]
                    choices.append((f"run here, η = {item.value['rate']:g}", _HERE))
                    yield [said, *_buttons(False), item.value,
                           gr.update(choices=choices, value=_HERE, visible=True)]  # fmt: skip
        except Cancelled:
            yield [views.status("Stopped."), *_buttons(False), *views.skip(2)]
        except Exception as error:
            yield [views.status(sentence(error), "error"), *_buttons(False), *views.skip(2)]

    def show_own(own: Any, name: str | None) -> Any:
        return own if name == _HERE else gr.skip()

    def stop_lab(request: gr.Request) -> None:
        page.lab.runs.jobs.stop(_job(request))

    def tasks_of_lab(selection: dict[str, Any], chosen: list[str]) -> Any:
        """Other models, other tasks."""
        known = page.tasks(selection)
        names = [name for _, name in known]
        kept = [name for name in chosen if name in names]
        return gr.update(choices=known, value=kept or names[: USUAL["tasks"]])

    page.selection.change(
        tasks_of_lab, [page.selection, out["theorem_tasks"]], out["theorem_tasks"], **CHEAP, **PRIVATE
    )
    gr.on(
        [out["theorem_tasks"].change, out["theorem_images"].release, out["theorem_optimisers"].input], cost_of_lab,
        fields, out["theorem_cost"], trigger_mode="always_last", **CHEAP, **PRIVATE,
    )  # fmt: skip
    out["theorem_go"].click(
        run_lab, [*fields, out["theorem_rate"], page.selection],
        [out[f"theorem_{name}"] for name in ("job", "go", "stop", "own", "of")], **_LABS, **PRIVATE,
    ).then(show_own, [out["theorem_own"], out["theorem_of"]], out["theorem"], **CHEAP, **PRIVATE)  # fmt: skip
    out["theorem_stop"].click(stop_lab, None, None, queue=False, show_progress="hidden", **PRIVATE)


def recipe_of(page: Page, tasks: list[str], images: float, optimisers: list[str], selection: dict[str, Any]) -> Any:
    """The recipe of a lab, checked against what this page allows."""
    from ..training.recipe import TrainRecipe

    if not selection.get("suite"):
        raise MergeLabError("These models have no suite, so there are no labelled pictures to take gradients of.")
    if not tasks or not optimisers:
        raise MergeLabError("Choose at least one task and one optimiser.")
    count, most = _count(tasks, images, optimisers), page.settings.max_train_samples
    if most is not None and count > most:
        raise MergeLabError(
            f"This would take gradients of {count:,} pictures, and this page allows {most:,}: take fewer tasks, "
            "pictures or optimisers; on your own machine MERGELAB_MAX_TRAIN_SAMPLES sets the limit."
        )
    return TrainRecipe.from_dict({
        "train": "experts", "base_model": selection["base"], "suite": suite_of(selection), "tasks": list(tasks),
        "images": int(images), "watch": {"split": "test", "limit": page.settings.per_task},
    })  # fmt: skip


def _job(request: gr.Request | None) -> str:
    return f"theorem-{session_of(request)}"


def _buttons(under_way: bool) -> list[Any]:
    return [gr.update(interactive=not under_way), gr.update(interactive=under_way)]
