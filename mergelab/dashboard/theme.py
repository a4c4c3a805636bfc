"""Colours, fonts and the style sheet. Everything is local: no font and no style comes over the network."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from ..paths import assets

#: A blue scale around Okabe-Ito's #0072B2, the colour of a merged model in every figure.
_BLUE = gr.themes.Color(
    name="lab",
    c50="#eef6fc",
    c100="#d8eaf7",
    c200="#b3d5ee",
    c300="#82bbe2",
    c400="#4a9cd3",
    c500="#1c82c4",
    c600="#0072b2",
    c700="#005d92",
    c800="#054c75",
    c900="#0a3f60",
    c950="#072941",
)


def theme() -> gr.themes.Base:
    """A calm page: one accent colour, IBM Plex from gradio's own files."""
    return gr.themes.Base(
        primary_hue=_BLUE,
        secondary_hue=_BLUE,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#0f141b",
        background_fill_primary="white",
        background_fill_primary_dark="#151b24",
        block_background_fill="white",
        block_background_fill_dark="#151b24",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_weight="600",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        link_text_color_dark="*primary_400",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )


def styles() -> Path:
    """The style sheet that ships with the package."""
    return assets() / "styles" / "mergelab.css"


#: Gradio's sliders tell of a release for the pointer only; this tells of one when a key is let go, too.
HEAD = """<script>
document.addEventListener("keyup", (event) => {
  const field = event.target;
  const moves = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
  if (field.matches?.("input[type=range]") && moves.includes(event.key))
    field.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  if (field.matches?.("input[type=number]") && event.key === "Enter") field.blur();
});
</script>"""
