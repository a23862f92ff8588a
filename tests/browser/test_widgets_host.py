"""The sliders as a reader of the rendered page has them: no kernel, no network, only `host.js`.

The pages here carry the same script tags as the book's builder emits, filled from the widgets' saved state.
"""

from __future__ import annotations

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import ipywidgets
import numpy as np
import pytest
import torch
from looks import TIME_FRAMES, assert_controls_fit, median_redraw
from pages import saved_state, settle, write_page
from torch import nn

from vaelab.widgets import LatentExplorer

pytestmark = pytest.mark.browser

NEEDS_KERNEL = "This widget needs a running kernel: open the chapter in Jupyter or Colab."


class Decoder(nn.Module):
    """As the package's decoders: [z, onehot(label)] to the logits of 28 x 28 pixels, at the book's size."""

    def __init__(self, latent_dim: int = 8, num_classes: int = 10, hidden: int = 256):
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        widths = [latent_dim + num_classes, hidden, hidden, 784]
        layers = [layer for pair in zip(widths, widths[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])
        nn.init.normal_(self.net[-1].weight, std=0.3)  # so that pictures differ


@pytest.fixture(scope="module")
def decoders() -> dict[str, Decoder]:
    torch.manual_seed(0)
    return {"6000 labels a class": Decoder(), "60": Decoder(), "6": Decoder()}


@pytest.fixture(scope="module")
def explorer(decoders) -> LatentExplorer:
    return LatentExplorer(decoders)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """The address of tmp_path on a local server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def picture(page) -> list[int]:
    """The large picture's pixels, once all pending redraws are done."""
    settle(page)
    return page.locator(".vs-figure canvas").first.evaluate("""(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, 28, 28);
        return Array.from(data).filter((_, i) => i % 4 === 3);   // the ink is the alpha channel
    }""")


@pytest.mark.parametrize("over", ["file", "http"])
@pytest.mark.parametrize("early", [True, False], ids=["script first", "script last"])
def test_slider_moves_by_keyboard(explorer, open_page, tmp_path, served, over, early):
    path = write_page(tmp_path, explorer, early=early)
    opened = open_page(path.as_uri() if over == "file" else f"{served}/page.html")
    page = opened.page
    slider = page.get_by_role("slider", name="z1")
    before = picture(page)
    assert np.ptp(before) > 100
    slider.focus()
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    moved = picture(page)
    assert moved != before
    assert page.locator("output").first.inner_text() == "0.2"
    page.get_by_role("slider", name="z2").press("PageDown")
    assert picture(page) != moved
    assert page.locator("output").last.inner_text().startswith("\u2212")
    assert "z1 = 0.2" in page.get_by_role("img").first.get_attribute("aria-label")
    assert (opened.errors, opened.elsewhere) == ([], [])


def test_class_and_decoder_change_by_keyboard(explorer, open_page, tmp_path):
    opened = open_page(write_page(tmp_path, explorer).as_uri())
    page = opened.page
    pictures = [picture(page)]
    page.get_by_role("radio", name="0", exact=True).press("ArrowRight")
    pictures.append(picture(page))
    assert page.get_by_role("radio", name="1", exact=True).is_checked()
    page.get_by_role("radio", name="6000 labels a class").press("ArrowDown")
    pictures.append(picture(page))
    expected = [("6000 labels a class", 0), ("6000 labels a class", 1), ("60", 1)]
    for drawn, (choice, label) in zip(pictures, expected):
        truth = 255 * explorer.pixels(choice, explorer.z, label).ravel()
        assert np.abs(drawn - truth).max() <= 1
    assert opened.errors == []


def test_new_style_keeps_the_sliders_and_reset_goes_back(explorer, open_page, tmp_path):
    page = open_page(write_page(tmp_path, explorer).as_uri()).page
    start = picture(page)
    page.get_by_role("slider", name="z1").press("ArrowRight")
    moved = picture(page)
    page.get_by_role("button", name="New style").press("Enter")
    assert picture(page) != moved
    assert page.locator("output").first.inner_text() == "0.1"
    page.get_by_text("The other coordinates were drawn afresh.").wait_for(state="attached")
    page.get_by_role("button", name="Reset").press("Enter")
    assert picture(page) == start


def test_two_views_share_a_model(explorer, open_page, tmp_path):
    opened = open_page(write_page(tmp_path, explorer, explorer).as_uri())
    opened.page.get_by_role("slider", name="z1").first.press("End")
    picture(opened.page)
    assert opened.page.locator("output").all_inner_texts() == ["3.0", "0.0", "3.0", "0.0"]
    assert opened.errors == []


def test_browser_and_torch_agree(explorer, decoders, open_page, tmp_path):
    """The same pictures from float16 weights in JavaScript and float32 weights in torch."""
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    page = open_page(write_page(tmp_path, explorer).as_uri()).page
    drawn = page.evaluate(
        """async ({esm, codes, classes}) => {
            const text = esm + "\\nexport { openDecoders, decode };";   // for this test only
            const { openDecoders, decode } =
                await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
            const script = document.querySelector('script[type$="widget-state+json"]');
            const saved = Object.values(JSON.parse(script.textContent).state).find(({ state }) => state._esm);
            const bytes = Uint8Array.from(atob(saved.buffers[0].data), (c) => c.charCodeAt(0));
            const traits = { ...saved.state, weights: new DataView(bytes.buffer) };
            const decoders = openDecoders({ get: (name) => traits[name] });
            const drawn = [];
            for (const forward of decoders.values()) for (const z of codes)
                for (let label = 0; label < classes; label++)
                    drawn.push(decode(forward, z, label, classes).slice());
            const reader = new FileReader();   // to base64: numbers as JSON would take seconds
            reader.readAsDataURL(new Blob(drawn));
            await new Promise((done) => { reader.onload = done; });
            return reader.result.split(",")[1];
        }""",
        {"esm": explorer._esm, "codes": z.tolist(), "classes": 10},
    )
    onehot = torch.eye(10).expand(32, 10, 10)
    inputs = torch.cat([z[:, None].expand(32, 10, 8), onehot], -1)  # (32, 10, 18)
    with torch.no_grad():
        truth = torch.stack([decoder.net(inputs).sigmoid() for decoder in decoders.values()])
    drawn = np.frombuffer(base64.b64decode(drawn), "<f4").reshape(truth.shape)  # (3, 32, 10, 784)
    worst = np.abs(drawn - truth.numpy()).max()
    print(f"largest difference between browser and torch: {worst:.2e}")
    assert worst <= 1 / 255


def test_a_move_redraws_within_a_frame(explorer, open_page, tmp_path):
    page = open_page(write_page(tmp_path, explorer).as_uri(), script=TIME_FRAMES).page
    slider = page.get_by_role("slider", name="z1")
    assert median_redraw(page, slider) < 16


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_controls_fit(explorer, open_page, tmp_path, width, dark):
    page = open_page(write_page(tmp_path, explorer).as_uri(), width=width, dark=dark).page
    page.locator(".vaelab-slider").wait_for()
    assert_controls_fit(page, width)
    ink = page.locator(".vs-picture").first.evaluate("(canvas) => getComputedStyle(canvas).filter")
    assert ink == ("invert(1)" if dark else "none")


def test_a_foreign_widget_says_that_it_needs_a_kernel(explorer, open_page, tmp_path):
    foreign = ipywidgets.IntSlider()
    unsaved = ipywidgets.IntText()
    path = write_page(tmp_path, foreign, explorer, unsaved, state=saved_state(foreign, explorer))
    opened = open_page(path.as_uri())
    opened.page.locator(".vaelab-slider").wait_for()
    assert opened.page.locator(".vaelab-host-note").all_inner_texts() == [NEEDS_KERNEL, NEEDS_KERNEL]
    assert opened.page.locator(".vaelab-slider").count() == 1
    assert opened.errors == []


def anywidget_state(esm: str, **traits: object) -> dict:
    """One saved anywidget with the id w."""
    state = {"_esm": esm, "_css": "", **traits}
    return {"w": {"model_name": "AnyModel", "model_module": "anywidget", "state": state}}


class Shown:
    """Stands where a widget was shown, its state being written by hand."""

    def get_view_spec(self) -> dict:
        return {"model_id": "w"}


@pytest.mark.parametrize(
    "esm, message",
    [
        ("export default { render() { throw new Error('no pen'); } }", "could not start: no pen"),
        ("export default { initialize() { throw new Error('no ink'); } }", "could not start: no ink"),
        ("this is no module", "could not start: "),
        ("https://example.org/widget.js", NEEDS_KERNEL),
    ],
)
def test_a_module_that_fails_says_so(open_page, tmp_path, esm, message):
    opened = open_page(write_page(tmp_path, Shown(), state=anywidget_state(esm)).as_uri())
    assert message in opened.page.locator(".vaelab-host-note").inner_text()
    assert bool(opened.errors) == (message != NEEDS_KERNEL)
    assert opened.elsewhere == []


RENDER = """function render({ model, el }) {
    const heard = [];
    model.on("change:n change", (m, value) => heard.push(value === undefined ? "change" : "n=" + value));
    model.set("n", 1); model.set("n", 1); model.set({ n: 2, list: [1] }); model.set("list", [1]);
    model.off("change"); model.set("n", 3);
    model.off(); model.set("n", 4);
    model.save_changes(); model.send({});
    el.textContent = heard.join(" ") + "; started " + (model.get("started") ?? 0);
}"""
START = "({ model }) => model.set('started', (model.get('started') ?? 0) + 1)"


@pytest.mark.parametrize(
    "export",
    [
        f"export default {{ initialize: {START}, render }}",
        f"export default () => ({{ initialize: {START}, render }})",
        f"export async function initialize(x) {{ ({START})(x); }} export {{ render }}",
    ],
    ids=["object", "function", "names"],
)
def test_the_model_tells_of_changes_as_backbone_does(open_page, tmp_path, export):
    path = write_page(tmp_path, Shown(), Shown(), state=anywidget_state(f"{RENDER}\n{export}", n=0, list=[]))
    opened = open_page(path.as_uri())
    shown = opened.page.locator(".output > div")
    shown.get_by_text("started 1").first.wait_for()
    assert shown.first.inner_text() == "n=1 change n=2 change n=3; started 1"
    assert shown.last.inner_text().endswith("started 1")
    assert opened.errors == []
