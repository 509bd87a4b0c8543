"""How the app looks. System fonts only: nothing is fetched, so it looks the same offline."""

from __future__ import annotations

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Indigo on slate, with soft corners."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=SANS,
        font_mono=MONO,
    ).set(
        # White on indigo 600 has a contrast of 6.3 to 1, in both modes.
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
@media (max-width: 600px) { .gradio-container .main.app { padding: .75rem !important; } }
#bridge-title { padding: 0 .25rem; }
#bridge-title h1 { font-size: 1.5rem; margin: 0; }
#bridge-title p { margin: .1rem 0 0; opacity: .8; }
#bridge-title .bridge-models { font-size: .85rem; overflow-wrap: anywhere; opacity: 1; }
.bridge-models span { margin-inline-end: 1rem; }

/* Two columns on a desk; on a phone the picture comes right after the words. */
.bridge-grid { display: grid !important; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
.bridge-grid > * { min-width: 0 !important; width: 100%; }
@media (min-width: 860px) {
  .bridge-grid {
    grid-template-columns: minmax(0, 5fr) minmax(0, 6fr);
    grid-template-areas: "words picture" "more picture";
    grid-template-rows: auto 1fr;
  }
  .bridge-words { grid-area: words; }
  .bridge-picture { grid-area: picture; }
  .bridge-more { grid-area: more; }
}

/* What says nothing takes no room. */
#bridge-title .html-container, #tokens .html-container,
#draw-status .html-container, #ask-status .html-container,
#compare-status .html-container,
#study-status .html-container, #study-count .html-container { padding: 0; }
/* Hidden by its being empty, never by what it holds: a new kind of message is never invisible. */
:is(#tokens, #draw-status, #ask-status, #compare-status, #study-status):has(.prose:empty) {
  display: none;
}
.bridge-note, .bridge-problem, .bridge-warning { margin: 0; padding: .1rem .25rem; }
.bridge-note { opacity: .8; }
.bridge-problem, .bridge-warning {
  border-left: 4px solid #dc2626; border-radius: 4px; padding: .6rem .8rem;
  background: rgb(220 38 38 / .1); overflow-wrap: anywhere;
}
.bridge-warning { border-color: #d97706; background: rgb(217 119 6 / .12); margin-top: .35rem; }
.bridge-problem pre { overflow-x: auto; margin: .3rem 0 0 !important; }
/* What is still there of before. Its words say so; the picture itself is paled too. */
.bridge-kept { font-weight: 600; opacity: 1; padding-top: .4rem; overflow-wrap: anywhere; }
.bridge-picture:has(.bridge-kept) #pictures img { opacity: .35; }
#study-status:has(.bridge-kept) ~ #study-results :is(img, .bar) { opacity: .4; }

.bridge-tokens { font-size: .82rem; padding: 0 .25rem; }
.bridge-tokens .bridge-count { margin: 0; }
.bridge-tokens .bridge-when { font-weight: 600; color: #4338ca; }
.dark .bridge-tokens .bridge-when { color: #a5b4fc; }
.bridge-tokens .bridge-row { margin: .1rem 0 .5rem; max-height: 9.5rem; overflow-y: auto; }
.bridge-tokens .bridge-cut { margin: 0 0 .5rem; color: #b91c1c; overflow-wrap: anywhere; }
.dark .bridge-tokens .bridge-cut { color: #fca5a5; }

/* Told to those who have keys; always, since what comes and goes with the focus of the prompt
   would move a button away between the mouse's down and up. */
#keys { display: none; font-size: .78rem; }
#keys .html-container { padding: 0; }
@media (hover: hover) { #keys { display: block; } }
#keys kbd {
  border: 1px solid currentColor; border-radius: .3em; padding: 0 .3em; font-size: .9em;
}

.bridge-drawing progress { width: 100%; height: .5rem; accent-color: #4f46e5; }
.bridge-drawing .previews { display: grid; gap: .5rem; margin-top: .25rem; }
.bridge-drawing .previews img {
  width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 10px; display: block;
}

/* The embedded models draw 128 pixels a side; shown at that size they would be stamps. */
#picture img { width: 100% !important; height: 100% !important; object-fit: contain; }
#pictures .caption {
  font-weight: 400; font-size: .82rem; display: block; max-width: 100%; padding: .4rem .5rem 0;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
}
#pictures .caption-label { display: none; }
#pictures.bridge-one .thumbnails { display: none; }
#pictures.bridge-one .media-button { height: calc(100% - 2.5rem) !important; }

/* Gradio measures a box before the page is laid out, and starts with one too tall. */
@supports (field-sizing: content) {
  #prompt textarea, #question textarea {
    field-sizing: content; height: auto !important; max-height: 8rem;
    overflow-y: auto !important;
  }
}
#chat .placeholder { padding: 1rem; text-align: center; }

#look-figure .html-container { padding: 0; }
.bridge-look { margin: 0; }
.bridge-look img {
  display: block; width: 100%; max-width: 28rem; margin: 0 auto; border-radius: 10px;
  border: 1px solid rgb(148 163 184 / .45);
}
.bridge-look figcaption {
  font-size: .85rem; opacity: .85; padding: .5rem .25rem 0; text-align: center;
}
#look-word .wrap, #look-kind .wrap { gap: .35rem; }
#look-word label { padding: .2rem .55rem; }

.bridge-halves { display: grid !important; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
.bridge-halves > * { min-width: 0 !important; width: 100%; }
@media (min-width: 860px) { .bridge-halves { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
#study-tables .html-container, #study-pictures .html-container { padding: 0 .25rem; }
.bridge-study h3 { font-size: 1.05rem; margin: 1rem 0 .15rem; }
.bridge-study .bridge-note { padding: 0; }
.bridge-study h4 { font-size: .9rem; margin: .6rem 0 .25rem; overflow-wrap: anywhere; }
.bridge-study small { display: block; font-size: .75rem; opacity: .8; font-weight: 400; }
.bridge-study i { opacity: .45; font-style: normal; padding: 0 .1em; }
.bridge-study .chips {
  list-style: none !important; display: flex; flex-wrap: wrap; gap: .35rem; padding: 0 !important;
  margin: 0 !important;
}
.bridge-study .chips li {
  margin: 0 !important;
  border: 1px solid rgb(148 163 184 / .45); border-radius: .4rem; padding: .15rem .5rem;
  text-align: center; background: rgb(99 102 241 / calc(var(--heat) * .45));
}
.bridge-study .rows {
  overflow: auto; max-height: 36rem; margin-top: .5rem; border-radius: 10px;
  border: 1px solid rgb(148 163 184 / .45);
}
.bridge-study table {
  border-collapse: collapse; width: 100%; font-size: .875rem; margin: 0 !important;
}
/* Gradio draws a dark line around every cell, and says so with more weight. */
.bridge-study :is(table, tr, th, td) { border: 0 !important; }
.bridge-study tbody tr { border-top: 1px solid rgb(148 163 184 / .3) !important; }
.bridge-study th, .bridge-study td {
  text-align: start; vertical-align: top; padding: .4rem .6rem; font-weight: 400;
  font-variant-numeric: tabular-nums;
}
.bridge-study thead th {
  position: sticky; top: 0; font-weight: 600;
  background: var(--background-fill-secondary);
}
.bridge-study th[scope=row] { overflow-wrap: anywhere; }
.bridge-study .split { display: block; font: .75rem ui-monospace, Menlo, monospace; opacity: .8; }
.bridge-study .bar {
  display: block; height: .35rem; min-width: 4rem; border-radius: 1rem; margin: .1rem 0;
  background: rgb(148 163 184 / .3); overflow: hidden;
}
.bridge-study .bar span { display: block; height: 100%; background: #6366f1; }
.bridge-study .cards {
  display: grid; gap: .25rem 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
}
.bridge-study .figures {
  display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr));
}
.bridge-study figure { margin: 0; }
.bridge-study figure img, .bridge-study .none {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px; margin: 0;
}
.bridge-study .none { border: 1px dashed rgb(148 163 184 / .6); }
.bridge-study figcaption { font-size: .8rem; padding-top: .2rem; line-height: 1.3; }

/* Else the box's name lies on the first picture, and who has no mouse cannot take one out. */
#compare-pictures .grid-wrap { padding-top: 2.25rem; }
#compare-pictures .delete-button { opacity: 1; }
#compare-results .html-container { padding: 0 .25rem; }
#compare-results:has(.prose:empty) { display: none; }
/* Side by side where so many thumbnails fit twice, else one below the other. */
.bridge-compare {
  display: grid; gap: 0 1.25rem;
  grid-template-columns:
    repeat(auto-fit, minmax(min(100%, calc(9.5rem + var(--pictures) * 4.6rem)), 1fr));
}
.bridge-compare > section { min-width: 0; }
.bridge-compare .rows { max-height: 85vh; }
.bridge-compare caption {
  text-align: start; font-weight: 600; padding: .4rem .6rem; font-size: .8rem;
}
/* Gradio's own padding is wider, and said with as much weight. */
.bridge-study .bridge-compare :is(thead th + th, td) {
  width: 4.6rem; min-width: 4.6rem; max-width: 4.6rem; padding: .35rem .3rem .35rem .4rem;
  white-space: nowrap;
}
.bridge-compare thead th { vertical-align: bottom; }
.bridge-compare th img {
  display: block; width: 3.5rem; height: 3.5rem; object-fit: contain; border-radius: 6px; margin: 0;
}
.bridge-compare thead small {
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: 1;
}
/* The texts stay in sight while many pictures scroll by. */
.bridge-study .bridge-compare th:first-child {
  position: sticky; left: 0; min-width: 7rem; max-width: 16rem; padding-block: .35rem;
  background: var(--background-fill-secondary);
}
.bridge-compare thead th:first-child { z-index: 1; }
.bridge-compare td { background: rgb(99 102 241 / calc(var(--heat) * .45)); }
.bridge-compare td small { opacity: 1; }
/* Not an outline, which would lie on the texts when the cell scrolls beneath them. */
.bridge-compare td.best { box-shadow: inset 0 0 0 2px currentColor; }
.bridge-compare ul { margin: 0 !important; padding-inline-start: 1.25rem !important; }
.bridge-compare li { overflow-wrap: anywhere; }
"""
