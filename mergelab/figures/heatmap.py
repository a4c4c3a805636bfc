"""Heat maps: cosines of task vectors (diverging, centred at 0), and a number per layer and model (sequential)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from .palette import INK, empty, finish, short

#: ColorBrewer's RdBu, blue for alike and red for opposed: told apart by every common kind of colour vision. Its darkest
#: ends are left out, so that a number in dark ink has a contrast of at least 4.7 on every cell.
DIVERGING = [[0.0, "#d6604d"], [0.25, "#f4a582"], [0.5, "#f2f2f2"], [0.75, "#92c5de"], [1.0, "#4393c3"]]
#: The light half of ColorBrewer's Blues, for the same reason.
SEQUENTIAL = [[0.0, "#f7fbff"], [0.5, "#c6dbef"], [1.0, "#6baed6"]]
#: Of the numbers in the cells.
CELL_INK = "#111827"

#: Below the cells, so that they keep the width of a phone.
_BAR = {
    "orientation": "h", "thickness": 10, "outlinewidth": 0, "len": 0.9, "y": -0.3, "yanchor": "top",
    "tickfont": {"color": INK, "size": 11},
}  # fmt: skip
_WRITE_UP_TO = 12  # more cells than this a side, and the numbers no longer fit


def cosine_heatmap(names: Sequence[str], matrix: Sequence[Sequence[float]], *, height: int = 420) -> go.Figure:
    """Cosine similarity of every pair of task vectors.

    The diagonal is 1 by definition and is left without colour; the scale is symmetric around 0 and ends at the largest
    other value, since task vectors are often nearly orthogonal and a scale to 1 would show one flat colour.
    """
    n = len(names)
    if n < 2:
        return empty("One task vector has nothing to be compared with.", height)
    off = [abs(matrix[i][j]) for i in range(n) for j in range(n) if i != j and math.isfinite(matrix[i][j])]
    limit = min(1.0, max(0.05, math.ceil(max(off, default=0.0) * 20) / 20))
    cells = [[None if i == j else _finite(matrix[i][j]) for j in range(n)] for i in range(n)]
    figure = _grid(names, names, cells, cut=11, shape="%{z:.3f}")
    figure.update_traces(colorscale=DIVERGING, zmin=-limit, zmax=limit, zmid=0)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-45)
    return finish(figure, height=height, legend=False, margin={"r": 8, "t": 30, "b": 110})


def layer_heatmap(
    layers: Sequence[str], names: Sequence[str], matrix: Sequence[Sequence[float | None]], *, height: int = 380
) -> go.Figure:
    """One number per model (rows) and layer (columns); ``matrix[model][layer]`` is at least 0."""
    if not names or not layers:
        return empty("No layer to show.", height)
    figure = _grid(names, layers, matrix, cut=14, shape="%{z:.3g}")
    figure.update_traces(colorscale=SEQUENTIAL, zmin=0)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-45)
    return finish(figure, height=height, legend=False, margin={"r": 8, "t": 30, "b": 110})


def _grid(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float | None]], *, cut: int, shape: str
) -> go.Figure:
    x, y = [short(column, cut) for column in columns], [short(row, 11) for row in rows]
    small = len(x) <= _WRITE_UP_TO and len(y) <= _WRITE_UP_TO
    return go.Figure(
        go.Heatmap(
            x=list(range(len(x))),
            y=list(range(len(y))),
            z=cells,
            customdata=[[f"{row} / {column}" for column in columns] for row in rows],
            hovertemplate="%{customdata}: " + shape + "<extra></extra>",
            texttemplate=("%{z:.2f}" if small else ""),
            textfont={"size": 10, "color": CELL_INK},
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar=_BAR,
        ),
        layout={
            "xaxis": {"tickvals": list(range(len(x))), "ticktext": list(x), "showgrid": False},
            "yaxis": {"tickvals": list(range(len(y))), "ticktext": list(y), "showgrid": False},
        },
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
