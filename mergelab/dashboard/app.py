"""The page put together: ``build_app`` makes it, ``launch`` serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..paths import assets
from . import (
    api,
    data_api,
    drafts,
    geometry,
    merge,
    models,
    predict,
    results,
    router,
    router_api,
    theme,
    train,
    views,
    work,
)
from .errors import log
from .lab import Lab
from .page import PRIVATE, Page
from .settings import Settings
from .steady import steady

HEADER = (
    '<header class="ml-header"><h1>MergeLab</h1><p>Models that were each fine-tuned for one task, put together into '
    "one. Move a slider and see what the merged model can still do.</p></header>"
)


def build_app(lab: Lab | None = None, settings: Settings | None = None) -> gr.Blocks:
    """The page, not launched. ``lab`` is what it talks to (default: the real rooms), ``settings`` its limits."""
    settings = settings or Settings.from_env()
    lab = lab or Lab(settings)
    work.use(lab)
    methods = lab.methods()
    first = opening(lab, settings, methods)
    with gr.Blocks(title="MergeLab", delete_cache=(600, 3600), analytics_enabled=False, fill_width=True) as demo:
        page = Page(
            lab,
            settings,
            methods,
            selection=gr.State(first["selection"]),
            form=gr.State(first["draft"]),
            draft=gr.State(drafts.copied(first["draft"])),
            data_draft=gr.State(None),
            result=gr.State(first["result"]),
            kept=gr.State([]),
            picture=gr.State(first["picture"]),
            prediction=gr.State(first["prediction"]),
        )
        trained = gr.State(None)  # the model of the visitor's training run after its last round, in plain values
        # the run's name; outside the tabs, for what is in a tab that was not opened yet is not read from the browser
        mine = gr.BrowserState(None, storage_key="mergelab-training", secret="mergelab-training")
        gr.HTML(HEADER, elem_id="header")
        with gr.Tabs(selected="merge", elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Models", id="models", elem_id="tab-models"):
                models.build(page, first)
            with gr.Tab("Merge", id="merge", elem_id="tab-merge"):
                shown = merge.build(page, first)
            with gr.Tab("Results", id="results", elem_id="tab-results"):
                shown_results = results.build(page, first)
            with gr.Tab("Geometry", id="geometry", elem_id="tab-geometry") as tab:
                geometry.build(page, tab, trained)
            with gr.Tab("Router", id="router", elem_id="tab-router"):
                router.build(page, first, shown_results)
            with gr.Tab("Predict", id="predict", elem_id="tab-predict"):
                predict.build(page, first, shown, trained)
            with gr.Tab("Train", id="train", elem_id="tab-train") as tab:
                train.build(page, first, shown_results, tab, current=trained, mine=mine)
        api.build(page, first["selection"])
        router_api.build(page, first["selection"])
        data_api.build(page, first["selection"])
        options: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_id": "first",
            "concurrency_limit": 4,
            **PRIVATE,
        }
        for chain in page.first_visit:
            event = demo.load
            for handler, inputs, outputs in chain:
                event = event(handler, inputs, outputs, **options).then
    steady(demo)
    demo.queue(max_size=settings.queue_size, default_concurrency_limit=4)
    return demo


def opening(lab: Lab, settings: Settings, methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is there before anything is computed: the shipped measurement of the zoo, or an invitation."""
    selection = lab.zoo(settings.zoo)
    name = "task_arithmetic" if "task_arithmetic" in methods else next(iter(methods))
    draft = drafts.fresh(methods[name], selection)
    titles = lab.titles(selection)
    tasks = [(titles[task], task) for task in selection["experts"] if task in titles]
    picture = {"task": next(iter(selection["experts"])), "place": 0}
    first: dict[str, Any] = {
        "selection": selection, "draft": draft, "recipe": drafts.to_recipe(draft, methods[name], selection),
        "tasks": tasks, "picture": picture, "result": None, "prediction": None,
        "status": views.status("Ready: move a slider to merge the experts."),
    }  # fmt: skip
    shipped = lab.first_screen()
    if shipped is None:
        return first
    shown = drafts.from_recipe(shipped.recipe, methods[shipped.recipe.merge_method], selection)
    if shown is None:
        log.warning("the shipped measurement does not belong to the zoo's experts; it is not shown")
        return first
    method = methods[shipped.recipe.merge_method]
    first["draft"], first["recipe"] = shown, drafts.to_recipe(shown, method, selection)
    first["result"] = shipped_result(shipped, first["recipe"], method, selection, titles)
    first["result"]["tuned"] = drafts.is_tuned(shown, method, selection)
    first["status"] = views.result_status(first["result"], "Shipped with the zoo: move a slider.")
    if shipped.samples:
        first["prediction"], first["picture"] = shipped_prediction(lab, selection, shipped.samples, titles)
    return first


def shipped_result(
    shipped: Any, recipe: Any, method: dict[str, Any], selection: dict[str, Any], titles: dict[str, str]
) -> views.Result:
    """The shipped evaluations as a result like any other."""
    tasks = {task: found["tasks"][task] for task, found in shipped.experts.items() if task in found.get("tasks", {})}
    rows = list(tasks.values())
    mean = sum(row["accuracy"] for row in rows) / len(rows) if rows else None
    experts = {**shipped.merged, "source": "experts", "tasks": tasks, "seen": {"accuracy": mean, "normalised": 1.0}}
    experts["unseen"] = {"accuracy": None, "normalised": None}
    for row in rows:
        row.setdefault("normalised", 1.0)
    return {
        "id": work.id_of(recipe, None), "label": work.label(recipe, method, len(selection["experts"])),
        "method": recipe.merge_method, "recipe": recipe.to_dict(), "hash": recipe.hash, "evaluation": shipped.merged,
        "base": shipped.base, "experts": experts, "titles": titles, "per_task": None, "tuned": True,
        "seconds": shipped.merged.get("seconds"),
    }  # fmt: skip


def shipped_prediction(
    lab: Lab, selection: dict[str, Any], samples: Sequence[dict[str, Any]], titles: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first shipped sample that the merge and its expert read rightly and the base does not, else the first one.

    A sample is ``{"task", "index" in the test split, "label", "base", "expert", "merged": probabilities}``.
    """

    def reads(sample: dict[str, Any], who: str) -> bool:
        return max(range(len(sample[who])), key=sample[who].__getitem__) == sample["label"]

    def telling(sample: dict[str, Any]) -> bool:
        return reads(sample, "merged") and reads(sample, "expert") and not reads(sample, "base")

    sample = next(filter(telling, samples), samples[0])
    bench, task = lab.open(selection), sample["task"]
    pixels, truth = work.test_picture(bench, task, sample["index"])
    classes = bench.task(task).classes
    models = [{"model": who, "classes": classes, "probabilities": sample[who]} for who in views.ROLES]
    prediction = {
        "task": task, "title": titles.get(task, task), "truth": truth, "png": views.png(pixels),
        "rows": views.prediction_rows(models),
    }  # fmt: skip
    return prediction, {"task": task, "index": sample["index"]}


def launch_options(settings: Settings) -> dict[str, Any]:
    """What ``launch`` is called with: nothing is shared, nothing is watched, nothing of this machine is served."""
    return {
        "server_name": settings.server_name, "server_port": settings.server_port, "theme": theme.theme(),
        "css_paths": [theme.styles()], "head": theme.HEAD, "allowed_paths": [], "blocked_paths": [str(assets())],
        "max_file_size": f"{settings.max_file_mb}mb", "show_error": False, "run_history": False,
        "enable_monitoring": False, "strict_cors": True, "footer_links": ["api", "settings"],
        "state_session_capacity": 2000, "ssr_mode": False, "pwa": False, "share": False, "quiet": True,
    }  # fmt: skip


def launch(demo: gr.Blocks, settings: Settings, lab: Lab | None = None) -> None:
    """Serve the page, load the starter zoo meanwhile, and stay until the process is ended."""
    demo.launch(**launch_options(settings), prevent_thread_lock=True)
    print(f"MergeLab: {demo.local_url}", flush=True)
    (lab or Lab(settings)).warm()
    demo.block_thread()
