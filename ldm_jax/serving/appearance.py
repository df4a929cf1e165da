"""How the web pages look, and how they are mounted: nothing but local files."""

import os

import gradio as gr
from fastapi import FastAPI

FONT = ("system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")

CSS = """
.gradio-container { width: 100%; max-width: 1400px !important;
  margin: 0 auto; }
.progress { display: flex; flex-direction: column; gap: 0.5rem; }
.progress progress { width: 100%; height: 0.75rem; appearance: none;
  border: 0; border-radius: 4px; overflow: hidden;
  background: rgba(128, 128, 128, 0.25); }
.progress progress::-webkit-progress-bar { background: transparent; }
.progress progress::-webkit-progress-value { background: #2563eb; }
.progress progress::-moz-progress-bar { background: #2563eb; }
.progress img { width: 256px; max-width: 100%; image-rendering: pixelated;
  border-radius: 4px; }
.progress p { margin: 0; font-variant-numeric: tabular-nums; }
.gradio-container table { font-variant-numeric: tabular-nums; }
.table { overflow-x: auto; }
.table table { border-collapse: collapse; border: 0 !important;
  font-size: 0.85rem; width: max-content; min-width: 100%; }
.table thead, .table tbody, .table tr { border: 0 !important; }
.table th, .table td { text-align: left; padding: 0.25rem 0.75rem;
  vertical-align: top; border: 0 solid rgba(128, 128, 128, 0.25) !important;
  border-width: 0 0 1px 0 !important; max-width: 36rem;
  overflow-wrap: anywhere; min-width: 4rem; }
.previews { display: flex; flex-wrap: wrap; gap: 1rem; }
.previews figure { margin: 0; flex: 1 1 320px; max-width: 100%; }
.previews img { max-width: 100%; image-rendering: pixelated; }
.image-frame img, .image-container img { width: 100%; height: 100%;
  object-fit: contain; }
.grid-wrap.fixed-height { max-height: none !important; }
/* below the label, which else covers the first row */
.grid-wrap { padding-top: 2.25rem !important; }
#grid-results .image-container { padding-top: 2.25rem; }
.caption-label { white-space: normal !important; overflow-wrap: anywhere;
  max-width: 100% !important; font-size: 0.75rem !important; }
footer { display: none !important; }
"""


def new_blocks(title: str) -> gr.Blocks:
  """An empty page without telemetry, whose files are deleted after a day."""
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # of errors too
  return gr.Blocks(
    title=title, analytics_enabled=False, delete_cache=(3600, 86400)
  )


def mount_page(app: FastAPI, blocks: gr.Blocks, path: str = "/") -> FastAPI:
  """Mounts a page with system fonts and local scripts alone.

  Args:
    path: of the page; other routes of `app` must be added before "/".
  """
  theme = gr.themes.Base(
    primary_hue="blue", font=FONT, font_mono=MONOSPACE, radius_size="sm"
  )
  return gr.mount_gradio_app(
    app,
    blocks,
    path=path,
    theme=theme,
    css=CSS,
    footer_links=[],
    run_history=False,
    ssr_mode=False,
    mcp_server=False,
    pwa=False,
    enable_monitoring=False,
  )
