"""Weight space on paper: the loss on a plane through three models, on a line between two, and checkpoints projected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .heatmap import CELL_INK, SEQUENTIAL
from .palette import CYCLE, GRID, Style, empty, finish, series_of, short, style

Row = Mapping[str, Any]

_ROLES = {role: style(role) for role in ("base", "experts", "merged")}
_LEVELS = 14  # of a landscape, about
#: Behind a label, so that its dark ink reads on cells, lines and a dark page alike.
_PLATE = "rgba(255, 255, 255, 0.86)"
_LABEL, _LETTER, _LINE = 16, 6.2, 17  # characters of a label; pixels of one of them, and of a line
_PHONE = 300  # pixels of a plot's width on a phone, for which labels are placed


def landscape(
    xs: Sequence[float],
    ys: Sequence[float],
    values: Sequence[Sequence[float | None]],
    points: Sequence[Row] = (),
    paths: Mapping[str, Sequence[Sequence[float]]] | None = None,
    *,
    looks: Mapping[str, str] | None = None,
    title: str = "mean loss",
    unit: str = "",
    top: float | None = None,
    height: int = 520,
) -> go.Figure:
    """Filled contours of ``values[y][x]`` on a plane, with models and paths on it; both axes have one scale.

    Args:
        points: rows with keys ``series, role, title, x, y``, and ``off`` where a model lies off the plane (its distance
            is in the hover).
        paths: name -> points [n][2] in order; the last one has a larger mark.
        looks: path -> the series whose look it has, such as that of the run whose way it is.
        title: what the values are; ``unit`` "%" shows shares as percentages.
        top: the colours end there (losses far from the models may be many times as high as those between them).
    """
    drawn = [value for row in values for value in row if value is not None and math.isfinite(value)]
    if not drawn:
        return empty("No landscape has been computed yet.", height)
    low, high = min(drawn), max(drawn)
    high = high if top is None else max(low, min(high, top))
    share = ".0%" if unit == "%" else ".3~g"
    figure = go.Figure(
        go.Contour(
            name=title, x=list(xs), y=list(ys),
            z=[[value if value is not None and math.isfinite(value) else None for value in row] for row in values],
            colorscale=SEQUENTIAL, zmin=low, zmax=high, connectgaps=False, line={"color": GRID, "width": 1},
            contours={**_levels(low, high), "showlabels": True, "labelformat": share,
                      "labelfont": {"size": 10, "color": CELL_INK}},
            hovertemplate="%{z:" + (".1%" if unit == "%" else ".4g") + "}<extra>" + title + "</extra>",
            colorbar={
                "orientation": "h", "thickness": 10, "outlinewidth": 1, "outlinecolor": GRID,
                "len": 0.9, "y": 1.02, "yanchor": "bottom",
                "tickformat": share, "tickfont": {"size": 11}, "nticks": 6,
                "title": {"text": title if unit in ("", "%") else f"{title}, {unit}", "side": "top"},
            },
        )
    )  # fmt: skip
    series = series_of(points)
    ways = _looks(paths or {}, looks or {}, series)
    for name, path in (paths or {}).items():
        _add_path(figure, name, path, ways[name], on_cells=True)
    for name, look in series:
        mine = [row for row in points if str(row["series"]) == name]
        _add_points(figure, name, mine, look)
    labels = _labels(points, (xs[0], xs[-1]), (ys[0], ys[-1]), height - 200)
    figure.update_layout(annotations=[*labels, _BELOW])
    figure.update_xaxes(range=[xs[0], xs[-1]], constrain="domain", showgrid=False, zeroline=False)
    figure.update_yaxes(range=[ys[0], ys[-1]], constrain="domain", showgrid=False, zeroline=False, scaleanchor="x")
    return _with_legend(figure, len(series) + len(paths or {}), height, top=72)


def barriers(
    alphas: Sequence[float],
    curves: Mapping[str, Sequence[float | None]],
    *,
    axis: str = "mean loss",
    ends: tuple[str, str] = ("", ""),
    highlight: str = "mean",
    height: int = 400,
) -> go.Figure:
    """The loss on the line between two models, a curve a task, each with the chord between its ends dotted.

    What a curve rises above its chord is its barrier. ``ends`` are the names of the two models; the curve called
    ``highlight`` is drawn as the page's own result is.
    """
    if not alphas or not curves:
        return empty("No line has been measured yet.", height)
    figure = go.Figure()
    others = [look for look in CYCLE if look != style("merged")]
    for index, (name, losses) in enumerate(curves.items()):
        look = style("merged") if name == highlight else others[index % len(others)]
        figure.add_trace(
            go.Scatter(
                name=short(name, 18), x=list(alphas), y=list(losses), mode="lines+markers",
                line={"color": look.color, "dash": look.dash, "width": 3 if name == highlight else 2},
                marker={"symbol": look.marker, "size": 8 if name == highlight else 6, "color": look.color},
                hovertemplate="%{x:.3~g}: %{y:.4g}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
        if losses[0] is not None and losses[-1] is not None:
            figure.add_trace(
                go.Scatter(
                    name=f"chord of {name}", x=[alphas[0], alphas[-1]], y=[losses[0], losses[-1]], mode="lines",
                    line={"color": look.color, "dash": "dot", "width": 1}, showlegend=False, hoverinfo="skip",
                )
            )  # fmt: skip
    between = f"share of {short(ends[1], 18)}, the rest {short(ends[0], 18)}" if all(ends) else "share of the second"
    figure.update_xaxes(title=_title(between), showgrid=False, zeroline=False)
    figure.update_yaxes(title=_title(axis), rangemode="tozero")
    return _with_legend(figure, len(curves), height)


def checkpoints(
    projection: Mapping[str, Any],
    groups: Mapping[str, str] | None = None,
    paths: Mapping[str, Sequence[str]] | None = None,
    *,
    looks: Mapping[str, str] | None = None,
    merged: str = "merged",
    height: int = 480,
) -> go.Figure:
    """Checkpoints in their two principal directions, with paths through some of them; both axes have one scale.

    Args:
        projection: ``names``, ``coordinates`` [n][2] and ``explained`` [2], the axes' shares of the variance.
        groups: name -> group; the groups ``base`` and ``experts`` look as everywhere, the one called ``merged`` as the
            page's own result does.
        paths: path -> names of its checkpoints in order; labels are left out between its ends, and where there is no
            room for them: the name is then in the hover alone.
        looks: path -> the group whose look it has.
    """
    places = dict(zip(projection["names"], projection["coordinates"], strict=True))
    if not places:
        return empty("No checkpoint to show.", height)
    groups, paths = groups or {}, paths or {}
    rows = []
    for name, (x, y) in places.items():
        group = groups.get(name, "checkpoints")
        role = "merged" if group == merged else group if group in ("base", "experts") else "kept"
        rows.append({"series": group, "role": role, "title": name, "x": x, "y": y})
    figure = go.Figure()
    series = series_of(rows)
    ways = _looks(paths, looks or {}, series)
    for path, names in paths.items():
        _add_path(figure, path, [places[name] for name in names], ways[path], on_cells=False)
    for group, look in series:
        _add_points(figure, group, [row for row in rows if row["series"] == group], look)
    between = {name for names in paths.values() for name in names[1:-1]}
    # Labels are wider than high.
    ends = [
        _padded(min(v), max(v), room) for v, room in zip(zip(*places.values(), strict=True), (0.3, 0.12), strict=True)
    ]
    named = [row for row in rows if row["title"] not in between]
    figure.update_layout(annotations=_labels(named, ends[0], ends[1], height - 180, crowded=True))
    first, second = projection["explained"]
    figure.update_xaxes(
        title=_title(f"first principal direction ({first:.0%})"), zeroline=False, range=ends[0], constrain="domain"
    )
    figure.update_yaxes(
        title=_title(f"second ({second:.0%})"), zeroline=False, range=ends[1], constrain="domain", scaleanchor="x"
    )
    return _with_legend(figure, len(series) + len(paths), height)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Room for marks and labels at both ends."""
    room = share * (high - low) or 1.0
    return low - room, high + room


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "standoff": 6}


#: An annotation, for an axis' title does not follow the axis where both must have one scale.
_BELOW = {
    "text": "both axes: parameter distance", "font": {"size": 12}, "showarrow": False,
    "xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0, "yanchor": "top", "yshift": -24,
}  # fmt: skip


def _with_legend(figure: go.Figure, entries: int, height: int, *, top: int = 28) -> go.Figure:
    """The common look, with room below for the rows that a legend takes on a phone; the plot keeps its ``height``."""
    room = 20 * -(-entries // 2)
    figure = finish(figure, height=height + room, margin={"t": top, "b": 72 + room, "l": 56})
    return figure.update_layout(legend={"y": -60 / (height - top - 72)})


def _looks(paths: Iterable[str], shared: Mapping[str, str], series: Sequence[tuple[str, Style]]) -> dict[str, Style]:
    """A look for every path: that of a series, or one that neither a series nor another path has taken."""
    known = dict(series)
    taken = sum(look not in _ROLES.values() for look in known.values())
    found = {}
    for path in paths:
        own = known.get(shared.get(path, ""))
        found[path] = own or style("kept", taken)
        taken += own is None
    return found


def _levels(low: float, high: float) -> dict[str, float]:
    """Contours at round numbers."""
    if high <= low:
        return {"start": low, "end": low, "size": 1.0}
    rough = (high - low) / _LEVELS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return {"start": math.ceil(low / step) * step, "end": math.floor(high / step) * step, "size": step}


def _add_path(figure: go.Figure, name: str, path: Sequence[Sequence[float]], look: Style, *, on_cells: bool) -> None:
    """A line through the steps; on coloured cells over a dark one, with a mark a step, and a larger one at the end."""
    x, y = [point[0] for point in path], [point[1] for point in path]
    if not on_cells:
        figure.add_trace(
            go.Scatter(
                name=short(name, 18), x=x, y=y, mode="lines", hoverinfo="skip",
                line={"color": look.color, "dash": look.dash, "width": 2},
            )
        )  # fmt: skip
        return
    # Its colour alone may not stand off from the cells.
    figure.add_trace(
        go.Scatter(
            name=f"under {name}", x=x, y=y, mode="lines", line={"color": CELL_INK, "width": 5},
            showlegend=False, hoverinfo="skip",
        )
    )  # fmt: skip
    last = len(path) - 1
    figure.add_trace(
        go.Scatter(
            name=short(name, 18), x=x, y=y, mode="lines+markers",
            customdata=[f"step {i} of {last}" for i in range(last + 1)],
            line={"color": look.color, "width": 2.5},
            marker={
                "symbol": look.marker, "size": [13 if i == last else 8 for i in range(last + 1)], "color": look.color,
                "line": {"color": CELL_INK, "width": 1},
            },
            hovertemplate="%{customdata}<extra>" + name + "</extra>",
        )
    )  # fmt: skip


def _add_points(figure: go.Figure, name: str, rows: Sequence[Row], look: Style) -> None:
    told = [str(row["title"]) + (f", {row['off']:.3g} off the plane" if row.get("off") else "") for row in rows]
    figure.add_trace(
        go.Scatter(
            name=short(name, 18), x=[row["x"] for row in rows], y=[row["y"] for row in rows], mode="markers",
            customdata=told, hovertemplate="%{customdata}<extra>" + name + "</extra>",
            marker={"symbol": look.marker, "size": 11, "color": look.color,
                    "line": {"color": "#ffffff", "width": 1.5}},
        )
    )  # fmt: skip


def _labels(
    rows: Sequence[Row], across: tuple[float, float], along: tuple[float, float], height: int, *, crowded: bool = False
) -> list[dict[str, Any]]:
    """A label beside every point, where it hides no earlier label and no point, if there is such a place; where there
    is none, it lies above, or is left out of a ``crowded`` figure."""
    span = max((across[1] - across[0]) / _PHONE, (along[1] - along[0]) / height) or 1.0
    spots = [((row["x"] - across[0]) / span, (row["y"] - along[0]) / span) for row in rows]
    taken, right_end = [(x, y, 12.0, 12.0) for x, y in spots], (across[1] - across[0]) / span
    out = []
    for row, (x, y) in zip(rows, spots, strict=True):
        text = short(str(row["title"]), _LABEL)
        wide = _LETTER * len(text) + 6
        side = wide / 2 + 9
        shifts = [(0, 17), (0, -17), (side, 0), (-side, 0), (side, 15), (-side, 15), (side, -15), (-side, -15)]
        free = [s for s in shifts if wide / 2 <= x + s[0] <= right_end - wide / 2
                and not any(_meet((x + s[0], y + s[1], wide, _LINE), box) for box in taken)]  # fmt: skip
        if crowded and not free:
            continue
        right, up = (free or shifts)[0]
        taken.append((x + right, y + up, wide, _LINE))
        out.append({
            "x": row["x"], "y": row["y"], "text": text, "showarrow": False, "xshift": right, "yshift": up,
            "bgcolor": _PLATE, "borderpad": 1, "font": {"size": 11, "color": CELL_INK},
        })  # fmt: skip
    return out


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes (middle, width, height) overlap."""
    return abs(a[0] - b[0]) * 2 < a[2] + b[2] and abs(a[1] - b[1]) * 2 < a[3] + b[3]
