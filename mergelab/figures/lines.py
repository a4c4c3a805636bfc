"""A number per layer, one line a series: norms of task vectors, sign-conflict rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from .palette import empty, finish, series_of, short, style


def layer_lines(
    layers: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    roles: Mapping[str, str] | None = None,
    axis: str = "",
    top: float | None = None,
    height: int = 380,
) -> go.Figure:
    """Draw ``series[name][layer]`` over ``layers`` in order; the axis starts at 0 and ends at ``top`` if given.

    ``roles``: series -> ``base``, ``experts`` or ``merged``, which look as everywhere.
    """
    if not layers or not series:
        return empty("No layer to show.", height)
    figure = go.Figure()
    known = dict(series_of([{"series": name, "role": (roles or {}).get(name, "kept")} for name in series]))
    for index, (name, values) in enumerate(series.items()):
        look = style("merged") if len(series) == 1 else known[name] if roles else style("counted", index)
        figure.add_trace(
            go.Scatter(
                name=name,
                x=list(range(len(layers))),
                y=list(values),
                customdata=list(layers),
                mode="lines+markers",
                line={"color": look.color, "dash": look.dash, "width": 2},
                marker={"symbol": look.marker, "size": 7, "color": look.color},
                hovertemplate="%{customdata}: %{y:.4g}<extra>" + name + "</extra>",
            )
        )
    figure.update_xaxes(
        tickvals=list(range(len(layers))),
        ticktext=[short(layer, 14) for layer in layers],
        tickangle=-45,
        showgrid=False,
    )
    figure.update_yaxes(title={"text": axis}, rangemode="tozero")
    if top is not None:
        figure.update_yaxes(range=[0, top])
    return finish(figure, height=height, legend=len(series) > 1, margin={"b": 80}).update_layout(legend={"y": -0.35})
