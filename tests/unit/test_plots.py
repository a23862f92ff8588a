"""Pictures: what is drawn is what was given, and it has a text alternative."""

from __future__ import annotations

import inspect
import io

import IPython.display
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from vaelab import ledger, metrics, plots


@pytest.fixture
def displayed(monkeypatch) -> list:
    """What is displayed, instead of displaying it."""
    shown: list = []
    monkeypatch.setattr(IPython.display, "display", lambda *items: shown.extend(items))
    return shown


# Figures


def test_subplots_are_always_a_table_of_axes():
    figure, axes = plots.subplots()
    assert axes.shape == (1, 1)
    figure, axes = plots.subplots(2, 3, width=6, height=4)
    assert axes.shape == (2, 3) and tuple(figure.get_size_inches()) == (6, 4)
    assert matplotlib.pyplot.get_fignums() == []  # so that no notebook shows it a second time


def test_the_house_style_stays_within_its_figures():
    before = dict(matplotlib.rcParams)
    _, axes = plots.subplots()
    assert axes[0, 0].xaxis.label.get_color() == plots.INK
    assert dict(matplotlib.rcParams) == before


def luminance(colour: str) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], channels))


def test_the_lettering_reads_on_white_and_on_the_dark_themes_ground():
    ink = luminance(plots.INK)
    assert 1.05 / (ink + 0.05) > 4 and (ink + 0.05) / (luminance("#14181e") + 0.05) > 4


def test_there_is_a_marker_for_each_colour():
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) == len(plots.MARKERS) == len(set(plots.MARKERS))


def test_show_displays_a_transparent_png_with_its_alternative(displayed):
    figure, _ = plots.subplots(width=5, height=2)
    plots.show(figure, "  a line\n   that rises ")
    (shown,) = displayed
    content, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "a line that rises" and metadata["image/png"]["width"] == 500
    picture = Image.open(io.BytesIO(shown.data))
    assert picture.format == "PNG" and picture.size == (750, 300)
    assert picture.convert("RGBA").getpixel((1, 1))[3] == 0


def test_show_works_with_colabs_ipython_whose_image_takes_metadata_but_no_alt(displayed, monkeypatch):
    class Image7(IPython.display.Image):
        def __init__(self, data=None, url=None, filename=None, format=None, embed=None, width=None, height=None,
                     retina=False, unconfined=False, metadata=None):  # fmt: skip
            super().__init__(data, url, filename, format, embed, width, height, retina, unconfined, metadata)

    assert "alt" in inspect.signature(IPython.display.Image).parameters
    monkeypatch.setattr(IPython.display, "Image", Image7)
    figure, _ = plots.subplots()
    plots.show(figure, "a line that rises")
    assert displayed[0]._repr_mimebundle_()[1]["image/png"]["alt"] == "a line that rises"


@pytest.mark.parametrize("alt", ["", " \n"])
def test_a_figure_without_a_text_alternative_is_refused(displayed, alt):
    with pytest.raises(ValueError, match="alt is empty; say what the figure shows"):
        plots.show(plots.subplots()[0], alt)
    assert displayed == []


# Images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count, columns, gap", [(6, 3, 2), (5, 3, 2), (2, 3, 1), (4, 2, 0), (1, 1, 2)])
def test_tile_lays_images_out_row_by_row_with_transparent_gaps(count, columns, gap, channels):
    h, w = 4, 5
    images = 0.1 + 0.8 * torch.rand(count, channels, h, w)
    canvas, rows = plots.tile(images, columns, gap), -(-count // columns)
    assert canvas.shape == (rows * (h + gap) - gap, columns * (w + gap) - gap, channels + 1)
    assert canvas.dtype == np.float32
    expected = np.zeros_like(canvas)
    for i in range(count):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        expected[y : y + h, x : x + w, :-1] = images[i].permute(1, 2, 0)
        expected[y : y + h, x : x + w, -1] = 1
    np.testing.assert_array_equal(canvas, expected)


def test_tile_cuts_grey_off_at_black_and_white_and_takes_tensors_with_gradients():
    images = torch.tensor([-1.0, 2.0], requires_grad=True).view(1, 1, 1, 2)
    assert plots.tile(images, 1)[..., 0].tolist() == [[0, 1]]


@pytest.mark.parametrize("channels", [2, 4])
def test_images_neither_grey_nor_in_colour_are_refused(channels):
    with pytest.raises(ValueError, match=f"images have {channels} channels; 1 .grey. or 3"):
        plots.tile(torch.rand(2, channels, 4, 4), 2)


def test_an_image_grid_draws_the_tiles_in_colour():
    axes, images = plots.subplots()[1][0, 0], torch.rand(5, 3, 4, 4)
    plots.image_grid(axes, images, 3)
    np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), plots.tile(images, 3))


def test_an_image_grid_draws_the_tiles():
    axes, images = plots.subplots()[1][0, 0], torch.rand(5, 1, 4, 4)
    plots.image_grid(axes, images, 3, "five")
    drawn = np.asarray(axes.images[0].get_array())
    canvas = plots.tile(images, 3)
    assert all(np.array_equal(drawn[..., channel], canvas[..., 0]) for channel in range(3))
    np.testing.assert_array_equal(drawn[..., 3], canvas[..., 1])
    assert axes.get_title(loc="left") + axes.get_title() == "five" and not axes.axison


def test_bytes_come_back_within_half_a_step():
    images = torch.rand(10, 1, 8, 8, requires_grad=True)
    stored = plots.to_uint8(images)
    assert stored.dtype == np.uint8 and stored.shape == (10, 1, 8, 8)
    back = plots.from_uint8(stored)
    assert back.dtype == torch.float32 and (back - images).abs().max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(plots.to_uint8(back), stored)


def test_bytes_are_cut_off_at_black_and_white():
    assert plots.to_uint8(torch.tensor([-0.5, 0.0, 1.0, 1.5]).view(4, 1, 1, 1)).ravel().tolist() == [0, 0, 255, 255]
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(plots.to_uint8(plots.from_uint8(every)), every)


# Curves and intervals


def test_curves_draw_the_mean_over_seeds_with_the_band_of_all_seeds():
    axes, x = plots.subplots()[1][0, 0], [1, 2, 4]
    series = {"a": np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]]), "b": np.array([[5.0, 5.0, 5.0]])}
    plots.curves(axes, x, series)
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [x, x]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 3, 5.5], [5, 5, 5]]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 2
    (band,) = axes.collections  # one seed has no band
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(1, 1), (2, 2), (4, 3), (1, 3), (2, 4), (4, 8)} <= corners


def test_curves_without_band_have_none():
    axes = plots.subplots()[1][0, 0]
    plots.curves(axes, [1, 2], {"a": np.array([[1.0, 2.0], [3.0, 4.0]])}, band=False)
    assert len(axes.lines) == 1 and len(axes.collections) == 0


@pytest.mark.parametrize("draw", [
    lambda axes, count: plots.curves(axes, [1, 2], {str(i): np.array([[i, i]]) for i in range(count)}),
    lambda axes, count: plots.intervals(axes, ["a"], {str(i): [np.array([i, i + 1])] for i in range(count)}),
], ids=["curves", "intervals"])  # fmt: skip
def test_more_series_than_colours_are_drawn_or_refused_but_not_dropped(draw):
    axes, count = plots.subplots()[1][0, 0], len(plots.COLOURS) + 1
    try:
        draw(axes, count)
    except ValueError:
        return
    assert {str(i) for i in range(count)} <= set(axes.get_legend_handles_labels()[1])


def test_intervals_draw_every_seed_and_the_mean_with_its_interval():
    axes = plots.subplots()[1][0, 0]
    seeds = [[1.0, 2.0, 3.0], [4.0, 6.0], [0.0, 1.0], [2.0, 2.5]]
    groups = {"a": [np.array(seeds[0]), np.array(seeds[1])], "b": [np.array(seeds[2]), np.array(seeds[3])]}
    plots.intervals(axes, ["few", "many"], groups)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["few", "many"]
    assert axes.get_xticks().tolist() == [0, 1]
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert dots == seeds
    assert [bars.get_label() for bars in axes.containers] == ["a", "b"]
    for bars, name in zip(axes.containers, groups):
        expected = [ledger.mean_interval(values) for values in groups[name]]
        line, _, (whiskers,) = bars.lines
        np.testing.assert_allclose(line.get_ydata(), [interval.mean for interval in expected])
        ends = [segment[:, 1] for segment in whiskers.get_segments()]
        np.testing.assert_allclose(ends, [(interval.low, interval.high) for interval in expected])
        assert np.abs(line.get_xdata() - [0, 1]).max() < 0.5


def test_intervals_of_two_series_stand_side_by_side():
    axes = plots.subplots()[1][0, 0]
    plots.intervals(axes, ["x"], {name: [np.array([1.0, 2.0])] for name in "ab"})
    places = [bars.lines[0].get_xdata()[0] for bars in axes.containers]
    assert places[0] < 0 < places[1] and places[0] == pytest.approx(-places[1])


def _report():
    return metrics.group_report([torch.full((4, 2, 2), 0.5), torch.zeros(4, 4, 4), torch.full((4, 8, 8), 0.02)])


def test_the_portrait_of_groups_shows_every_group_in_every_panel():
    at, kl = [10, 20, 40], np.array([[1.0, 0.1, 2.0], [4.0, 0.1, 3.0], [8.0, 0.0, 5.12]])
    figure = plots.group_portrait(at, kl, (2, 4, 8), _report(), until=20)
    panels = {ax.get_title(loc="left") or ax.get_title(): ax for ax in figure.axes}
    assert {"KL of a group, nats", "KL per unit, nats", "Share of active units at the end"} <= set(panels)
    names = [label.get_text() for label in panels["KL of a group, nats"].get_yticklabels()]
    assert names == ["1: 2×2", "2: 4×4", "3: 8×8"]
    values = panels["KL per unit, nats"].collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(values.T, kl / [16, 64, 256])
    line = panels["Effective groups, of 3"].lines[0].get_ydata()
    assert line[-1] == pytest.approx(metrics.effective_groups(torch.tensor(kl[-1])))
    said = [text.get_text() for text in panels["Share of active units at the end"].texts]
    assert said == ["16 of 16", "0 of 64  dead", "256 of 256"]


@pytest.mark.parametrize("at, sides", [([1, 2], (2, 4, 8)), ([1, 2, 3], (2, 4))])
def test_the_portrait_wants_shapes_that_fit(at, sides):
    with pytest.raises(ValueError, match="kl_groups is"):
        plots.group_portrait(at, np.ones((3, 3)), sides, _report())


@pytest.mark.parametrize("joined, line", [(True, "-"), (False, "None")])
def test_names_without_an_order_are_not_joined(joined, line):
    _, axes = plots.subplots()
    plots.intervals(axes[0, 0], ["a", "b"], {"x": [np.array([1.0, 2.0]), np.array([2.0, 3.0])]}, joined=joined)
    assert axes[0, 0].containers[0].lines[0].get_linestyle() == line
