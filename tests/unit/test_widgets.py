"""The sliders' Python side: what travels to the browser, what is refused, what other viewers get."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vaelab.widgets import LatentExplorer, Slider
from vaelab.widgets.base import pack_float16, png

VIEW = "application/vnd.jupyter.widget-view+json"


class Decoder(nn.Module):
    """The smallest decoder that the explorer takes."""

    def __init__(self, latent_dim: int = 3, num_classes: int = 4, hidden: int = 5, pixels: int = 9):
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        first, last = nn.Linear(latent_dim + num_classes, hidden), nn.Linear(hidden, pixels)
        self.net = nn.Sequential(first, nn.ReLU(), last)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder()


def test_float16_survives_the_journey():
    numbers = np.float32([0, 1, -1, 0.1, 65504, -65504, 6e-8, 1e-5])
    packed = pack_float16("weights", [numbers[:3], numbers[3:].reshape(1, -1)])
    assert len(packed) == 2 * len(numbers)
    np.testing.assert_array_equal(np.frombuffer(packed, "<f2"), numbers.astype(np.float16))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e6])
def test_float16_refuses_what_it_cannot_hold(bad):
    with pytest.raises(ValueError, match="weights must be finite and within ±65504"):
        pack_float16("weights", [np.array([1.0, bad])])


def test_a_slider_without_its_script_is_refused():
    with pytest.raises(FileNotFoundError, match="Lonely needs its JavaScript"):
        type("Lonely", (Slider,), {"__module__": __name__})


def test_its_script_can_stand_in_a_page():
    text = LatentExplorer._esm + LatentExplorer._css
    assert "export default" in LatentExplorer._esm
    for closes_or_hides in ("</script", "<script", "<!--"):
        assert closes_or_hides not in text.lower()


def test_explorer_starts_at_the_mean(decoder):
    explorer = LatentExplorer({"a": decoder, "b": Decoder()})
    assert (explorer.label, explorer.choice, explorer.z) == (0, "a", [0.0, 0.0, 0.0])
    assert explorer.widths == [7, 5, 9] and explorer.class_names == ["0", "1", "2", "3"]
    assert len(explorer.weights) == 2 * 2 * (7 * 5 + 5 + 5 * 9 + 9)


def test_pixels_are_the_decoders(decoder):
    explorer = LatentExplorer({"other": Decoder(), "a": decoder})
    z = [0.3, -1.2, 2.0]
    with torch.no_grad():
        logits = decoder.net(torch.tensor([[*z, 0, 0, 1, 0]]))
    np.testing.assert_allclose(explorer.pixels("a", z, 2), logits.sigmoid().reshape(3, 3), atol=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decoders": {}}, "decoders must hold at least one"),
        ({"decoders": {"a": Decoder(), "b": Decoder(hidden=6)}}, "'b' has"),
        ({"decoders": {"a": Decoder(pixels=8)}}, "square picture, got 7 to 8"),
        ({"axes": (0, 3)}, r"axes must be two different coordinates in 0 … 2, got \(0, 3\)"),
        ({"axes": (-1, 0)}, "axes must be"),
        ({"axes": (1, 1)}, r"got \(1, 1\)"),
        ({"axes": (0, 1, 2)}, "axes must be"),
        ({"class_names": ["one"]}, "class_names must hold 4 names, one a class, got 1"),
    ],
)
def test_explorer_names_what_is_wrong(decoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentExplorer(**{"decoders": {"a": decoder}, **arguments})


@pytest.mark.parametrize(
    "layers", [[nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 9)], [nn.Linear(7, 9, bias=False)], []]
)
def test_explorer_refuses_other_networks(decoder, layers):
    decoder.net = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=r"decoders\['a'\].net must be Linear, ReLU"):
        LatentExplorer({"a": decoder})


@pytest.mark.parametrize("bad", [math.nan, 1e6])
def test_explorer_refuses_weights_beyond_float16(decoder, bad):
    nn.init.constant_(decoder.net[2].bias, bad)
    with pytest.raises(ValueError, match=r"decoders\['a'\] must be finite"):
        LatentExplorer({"a": decoder})


@pytest.mark.parametrize(
    "trait, bad", [("label", 4), ("label", -1), ("choice", "c"), ("z", [1.0]), ("z", [0, 0, math.inf])]
)
def test_explorer_refuses_values_out_of_range(decoder, trait, bad):
    explorer = LatentExplorer({"a": decoder})
    with pytest.raises(ValueError, match=trait):
        setattr(explorer, trait, bad)


def test_what_the_browser_sends_can_be_read(decoder):
    explorer = LatentExplorer({"a": decoder, "b": Decoder()})
    explorer.set_state({"z": [1, 0, -0.5], "label": 2, "choice": "b"})  # a browser writes 1.0 as 1
    assert (explorer.z, explorer.label, explorer.choice) == ([1.0, 0.0, -0.5], 2, "b")


def test_viewers_without_widgets_get_words_and_a_picture(decoder):
    explorer = LatentExplorer({"a": decoder, "b": Decoder()}, alt="Four digits.")
    data, _ = explorer._repr_mimebundle_()
    assert data[VIEW]["model_id"] == explorer.model_id
    assert data["text/plain"] == "Four digits."
    assert Image.open(io.BytesIO(data["image/png"])).size == (2 * 4 * 3, 2 * 2 * 3)
    assert not callable(explorer._ipython_display_)  # ipywidgets 7 would show itself by it


def test_a_still_is_black_ink_on_white_enlarged():
    picture = np.asarray(Image.open(io.BytesIO(png(np.array([[0.0, 1.0], [0.5, 2.0]]), scale=3))))
    assert picture.shape == (6, 6)
    assert picture[0, 0] == 255 and picture[0, 5] == 0 and picture[5, 5] == 0
    assert abs(int(picture[5, 0]) - 128) <= 1
