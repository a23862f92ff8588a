"""Pages with sliders in them, as the book's builder emits them: the widgets' saved state, and `host.js`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ipywidgets
from ipywidgets.embed import dependency_state

import vaelab.widgets

HOST = Path(vaelab.widgets.__file__).parent / "static" / "host.js"
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Sliders</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 16px; font: 16px sans-serif; }}
[data-theme=dark] {{ --pst-color-text-base: #ced6dd; --pst-color-primary: #3fb1c5; background: #14181e; }}
</style><script>
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = dark ? "dark" : "light";
</script>{early}</head><body>{views}
<script type="application/vnd.jupyter.widget-state+json">{state}</script>{late}</body></html>"""
VIEW = '<div class="output"><script type="application/vnd.jupyter.widget-view+json">{}</script></div>'


def saved_state(*widgets: ipywidgets.Widget) -> dict:
    """What an executed notebook saves: every trait, defaults too."""
    return dependency_state(widgets, drop_defaults=False)


def write_page(folder: Path, *widgets: object, state: dict | None = None, early: bool = False) -> Path:
    """A page with these widgets; early: the host's script comes before them, in the head."""
    state = saved_state(*widgets) if state is None else state
    saved = {"version_major": 2, "version_minor": 0, "state": state}
    views = "".join(VIEW.format(json.dumps(widget.get_view_spec())) for widget in widgets)
    shutil.copy(HOST, folder)
    script = '<script src="host.js"></script>'
    text = PAGE.format(
        views=views, state=json.dumps(saved), early=script if early else "", late="" if early else script
    )
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


def settle(page) -> None:
    """Wait until all pending redraws are done."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
