"""Ink clips: the same pixels for the same seed, a correlation that moves frames together and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vaelab import data, ink

DIGEST = "eb4778c14f4457f4"  # of data.load("ink"); a new one is a new data set: say so, and run its chapters anew
MEAN, SPREAD = (0.457351, 0.454621), (0.247293, 0.247012)  # of all pixels, train and test
LABELS = ([2425, 2558, 3151, 2757, 2180, 2638, 2506, 2265], [285, 283, 222, 291, 213, 155, 415, 184])
SLOW = sum(ink.SLOW.values())


def clip_share(images: Tensor, clips: int) -> float:
    """Return the share of pixel variance that lies between clips, without bias from the finite number of frames."""
    x = images.double().view(clips, -1, images[0].numel())
    within = x.var(1).mean()
    between = x.mean(1).var(0).mean() - within / x.shape[1]
    return (between / (between + within)).item()


def features(images: Tensor) -> Tensor:
    """Return (N, 10) statistics of single frames: means, spreads and edges of the channels, and colourfulness."""
    x = images.double() / 255
    edges = x.diff(dim=-1).square().mean((2, 3)) + x.diff(dim=-2).square().mean((2, 3))
    return torch.cat([x.mean((2, 3)), x.var((2, 3)), edges, x.std(1).mean((1, 2)).unsqueeze(1)], dim=1)


# The same pixels


def test_frames_are_bytes_in_clip_order_with_a_label_each():
    images, labels = ink.draw(clips=3, frames=4, size=19)
    assert images.shape == (12, 3, 19, 19) and images.dtype == torch.uint8
    assert labels.shape == (12,) and labels.dtype == torch.int64
    stills = ink.draw(3, 4, 19, correlation=1 - 1e-12)[0].view(3, 4, -1).int()
    assert (stills - stills[:, :1]).abs().max() <= 1 and (stills[0] - stills[1]).abs().float().mean() > 20


def test_a_clip_depends_on_the_seed_and_its_number_alone():
    images, labels = ink.draw(5, 6, 17, seed=3)
    fewer, shorter = ink.draw(2, 6, 17, seed=3), ink.draw(5, 2, 17, seed=3)
    assert images[:12].equal(fewer[0]) and labels[:12].equal(fewer[1])
    assert images.view(5, 6, -1)[:, :2].equal(shorter[0].view(5, 2, -1))
    other = ink.draw(5, 6, 17, seed=4)[0]
    clips = torch.cat([images, other]).view(10, -1)
    assert len(clips.unique(dim=0)) == 10  # no clip of one seed is a clip of the next


def test_a_byte_is_the_nearest_level():
    f = ink.factors(2, 3, 0, ink.CORRELATION).flatten(0, 1)
    kinds = ink.SLOW | ink.FAST
    scene = dict(zip(kinds, f.split(list(kinds.values()), dim=1)))
    assert (ink.draw(2, 3, 17)[0] - 255 * ink._frames(scene, 17)).abs().max() <= 0.5


def test_the_global_generators_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    ink.draw(1, 2, 17)
    assert torch.rand(3).equal(before[0]) and np.array_equal(np.random.rand(3), before[1])


def test_the_number_of_threads_is_left_as_it_was(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    ink.draw(1, 1, 17)
    assert calls == [1, 7]


@pytest.mark.parametrize("size, step", [(65, 2), (129, 4)])
def test_a_larger_size_is_the_same_scene_finer(size, step):
    """With 2^k + 1 pixels a side every pixel of the smaller image is one of the larger."""
    small, large = ink.draw(2, 2, 33)[0].int(), ink.draw(2, 2, size)[0].int()
    assert (large[..., ::step, ::step] - small).abs().max() <= 1
    assert large.diff(dim=-1).abs().float().mean() < 1.5 / step * small.diff(dim=-1).abs().float().mean()


@pytest.mark.parametrize("change, message", [
    ({"clips": 0}, "clips is 0, frames is 2; both must be at least 1"),
    ({"frames": 0}, "clips is 1, frames is 0; both must be at least 1"),
    ({"size": 15}, "size is 15; it must be odd and at least 17"),
    ({"size": 32}, "size is 32; it must be odd and at least 17"),
    ({"correlation": 1.0}, "correlation is 1.0; it must be at least 0 and below 1"),
    ({"correlation": -0.1}, "correlation is -0.1; it must be at least 0 and below 1"),
    ({"correlation": math.nan}, "correlation is nan; it must be at least 0 and below 1"),
])  # fmt: skip
@pytest.mark.parametrize("function", ["draw", "kept"])
def test_what_cannot_be_drawn_is_refused(function, change, message, tmp_path):
    arguments = {"clips": 1, "frames": 2, "size": 17} | change
    with pytest.raises(ValueError, match=message):
        ink.draw(**arguments) if function == "draw" else ink.kept(tmp_path, **arguments)


# Correlation between frames


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.98])
def test_factors_are_standard_normal_with_the_correlation_asked_for(correlation):
    f = ink.factors(clips=4000, frames=6, seed=1, correlation=correlation)  # (clips, frames, d)
    assert f.dtype == torch.float64 and f.shape[2] == SLOW + sum(ink.FAST.values())
    error = 1 / math.sqrt(f.shape[0])  # of a mean over clips, which are independent
    assert f.mean(0).abs().max() < 4.5 * error and (f.square().mean(0) - 1).abs().max() < 4.5 * math.sqrt(2) * error
    slow, fast = correlation ** (1 / ink.SLOWNESS), correlation
    for lag in (1, 5):
        products = (f[:, 0] * f[:, lag]).mean(0)  # (d,)
        for part, c in ((products[:SLOW], slow**lag), (products[SLOW:], fast**lag)):
            spread = math.sqrt((1 + c**2) / f.shape[0])  # of a product of normals with correlation c
            assert (part - c).abs().max() < 4.5 * spread and abs(part.mean() - c) < 4 * spread / math.sqrt(len(part))


def test_a_single_frame_looks_the_same_at_every_correlation():
    free = features(ink.draw(100, 30, 17, seed=1, correlation=0)[0])  # 3,000 independent frames
    late = features(ink.draw(800, 20, 17, seed=2, correlation=0.98)[0].view(800, 20, 3, 17, 17)[:, -1])
    for power in (1, 2):  # means and mean squares of the statistics
        a, b = free**power, late**power
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 3.5 * error).all()
        assert (error < 0.05 * a.mean(0)).all()  # so small that a fifth more or less of anything would be seen


def test_clips_differ_the_more_the_more_frames_are_correlated():
    shares = [clip_share(ink.draw(120, 32, 17, correlation=c)[0], 120) for c in (0, 0.9, 0.98, 0.999)]
    assert abs(shares[0]) < 0.005
    assert 0.13 < shares[1] < 0.2 and 0.32 < shares[2] < 0.4 and shares[3] > 0.75


def test_neighbouring_frames_are_closer_than_distant_ones():
    x = ink.draw(50, 17, 17, correlation=0.98)[0].double().view(50, 17, -1)
    one, four, sixteen = ((x[:, lag] - x[:, 0]).square().mean() for lag in (1, 4, 16))
    assert 1.8 * one < four and 1.3 * four < sixteen


# What is to be seen


def test_the_label_is_the_octant_of_the_hue_of_the_first_ink():
    scene = {"hue": torch.zeros(8, 2), "ground_hue": torch.zeros(8, 2), "light": torch.zeros(8, 2)}
    angle = torch.arange(8) * math.tau / 8
    scene["hue"] = torch.stack([angle.cos(), angle.sin()], dim=1)
    first, second = ink._palette(scene)[..., 2:].unbind(-1)  # (8, 3) each
    order = first.argsort(1, descending=True)
    assert order[[0, 1, 2, 3, 5, 6, 7], 0].tolist() == [0, 0, 1, 1, 2, 2, 0]  # red, green or blue is strongest
    assert torch.allclose(first[0, 1], first[0, 2]) and torch.allclose(first[4, 1], first[4, 2])  # red and cyan
    assert ink.CLASS_NAMES[::2] == ("red", "lime", "cyan", "violet")
    assert torch.allclose(second / 0.8, first.roll(-4, 0), atol=1e-6)  # complementary: half a circle on, and darker
    f = ink.factors(40, 5, 0, 0.5).flatten(0, 1)
    degrees = torch.rad2deg(torch.atan2(f[:, 1], f[:, 0]))
    expected = ((degrees + 360 + 22.5) // 45).long() % 8
    assert ink.draw(40, 5, 17, correlation=0.5)[1].equal(expected) and set(expected.tolist()) == set(range(8))


def test_the_colour_of_a_frame_tells_the_label():
    """Of the four splats in the first ink some are seen: among saturated pixels its hue is the most frequent."""
    images, labels = ink.draw(60, 2, 33, correlation=0)
    x = images.double().flatten(2)  # (N, 3, pixels)
    saturated = (x.amax(1) - x.amin(1)) > 0.75 * 255
    primaries = torch.polar(torch.ones(3).double(), torch.arange(3).double() * math.tau / 3)
    hue = (x.to(torch.complex128) * primaries.view(1, 3, 1)).sum(1)  # (N, pixels)
    octant = (hue.angle() * 8 / math.tau).round().long() % 8
    votes = torch.stack([((octant == k) & saturated).sum(1) for k in range(8)], dim=1)
    assert (votes.argmax(1) == labels).double().mean() > 0.7


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_texture_is_a_sum_of_plane_waves(angle):
    generator = torch.Generator().manual_seed(0)
    scene = {k: torch.randn(2, n, generator=generator).double() for k, n in (ink.SLOW | ink.FAST).items()}
    x = torch.linspace(-0.5, 0.5, 17, dtype=torch.float64)
    across, down = torch.meshgrid(x, x, indexing="xy")
    k = 0.9 * math.tau * scene["waves"].view(2, 5, 2)
    phases = torch.atan2(*scene["phases"].view(2, 5, 2).flip(-1).unbind(-1))
    pan = scene["pan"] / 2
    total = sum(
        torch.cos(
            k[:, j, 0, None, None] * (across - pan[:, 0, None, None])
            + k[:, j, 1, None, None] * (down - pan[:, 1, None, None])
            + phases[:, j, None, None]
        )
        for j in range(5)
    )
    expected = (1 + torch.tanh(1.5 * total / math.sqrt(5 / 2))) / 2
    assert torch.allclose(ink._texture(scene, x), expected, atol=1e-12)


def test_a_splat_is_opaque_in_the_middle_soft_at_the_edge_and_has_its_size():
    scene = {k: torch.zeros(6, n).double() for k, n in (ink.SLOW | ink.FAST).items()}
    scene["radii"] = torch.linspace(-3, 3, 6).double().unsqueeze(1).expand(6, 6)
    scene["turns"] = torch.ones(6, 12).double()
    opacity = ink._splats(scene, torch.linspace(-0.5, 0.5, 129, dtype=torch.float64))  # (n, splats, h, w)
    assert opacity.shape == (6, 6, 129, 129) and 0 <= opacity.min() and opacity.max() <= 1
    assert (opacity[..., 64, 64] > 0.99).all() and (opacity[..., 0, :] < 0.01).all()
    area = (opacity > 0.5).double().mean((2, 3))[:, 0] * (129 / 128) ** 2
    radii = (area / math.pi).sqrt()  # of the disc with that area
    asked = torch.tensor([0.08 + 0.12 * 0.5 * (1 + math.erf(g / math.sqrt(2))) for g in scene["radii"][:, 0].tolist()])
    assert torch.allclose(radii / asked, (radii / asked)[0], rtol=0.02) and 0.8 < radii[0] / asked[0] < 1.2
    soft = ((opacity > 0.1) & (opacity < 0.9)).double().mean((2, 3))[:, 0]
    assert (soft > 0.001).all()


@pytest.mark.parametrize("factor, lobes", [(-3.0, 3), (-0.3, 4), (0.3, 5), (3.0, 6), (40.0, 6)])
def test_the_lobes_can_be_counted(factor, lobes):
    scene = {k: torch.zeros(1, n).double() for k, n in (ink.SLOW | ink.FAST).items()}
    scene["lobes"] += factor
    scene["radii"] += 3
    scene["reaches"] += 3
    scene["turns"][:, ::2] = 1  # the first lobe points to the right
    opacity = ink._splats(scene, torch.linspace(-0.5, 0.5, 257, dtype=torch.float64))[0, 0]
    angle = torch.arange(720) * math.tau / 720
    column, row = ((128 + 256 * 0.26 * f(angle)).round().long() for f in (torch.cos, torch.sin))
    inside = opacity[row, column] > 0.5
    assert int((inside & ~inside.roll(1)).sum()) == lobes
    assert (inside != inside.roll(720 // lobes)).double().mean() < 0.02  # all of one size, at equal distances


def test_later_splats_cover_earlier_ones():
    scene = {k: torch.zeros(1, n).double() for k, n in (ink.SLOW | ink.FAST).items()}
    scene["hue"][:, 0] = 1
    centre = ink._frames(scene, 17)[0, :, 8, 8]
    inks = ink._palette(scene)[0, :, 2:]
    assert ink.INK[-1] == 1 and torch.allclose(centre, inks[:, 1], atol=0.02)


# Kept on disk


def test_what_was_drawn_is_kept_and_a_damaged_file_is_drawn_anew(tmp_path, monkeypatch):
    arguments = {"clips": 2, "frames": 2, "size": 17, "seed": 1, "correlation": 0.5}
    images, labels = ink.kept(tmp_path, **arguments)
    assert images.equal(ink.draw(**arguments)[0]) and labels.equal(ink.draw(**arguments)[1])
    (kept,) = tmp_path.iterdir()
    sound, flipped = kept.read_bytes(), bytearray(kept.read_bytes())
    flipped[1000] ^= 4
    np.savez(tmp_path / "other.npz", images=images.numpy()[:3], labels=labels.numpy())
    np.savez(tmp_path / "part.npz", images=images.numpy())
    strangers = [path.read_bytes() for path in (tmp_path / "other.npz", tmp_path / "part.npz")]
    for content in (sound[:-5], sound[:500], b"", bytes(flipped), b"no archive", *strangers):
        kept.write_bytes(content)
        again = ink.kept(tmp_path, **arguments)
        assert again[0].equal(images) and again[1].equal(labels) and kept.read_bytes() == sound
    monkeypatch.setattr(ink, "_fingerprint", lambda *arguments: kept.stem.split("-")[1])
    monkeypatch.setattr(ink, "draw", lambda *arguments: pytest.fail("drawn again"))
    assert ink.kept(tmp_path, **arguments)[0].equal(images)


@pytest.mark.parametrize("name, value", [("_texture", lambda scene, x: x), ("_RECIPE", "another")])
def test_other_arguments_and_other_code_are_another_file(monkeypatch, name, value):
    before = ink._fingerprint(2, 2, 17, 1, 0.5)
    assert before == ink._fingerprint(2, 2, 17, 1, 0.5) != ink._fingerprint(2, 2, 17, 2, 0.5)
    monkeypatch.setattr(ink, name, value)
    assert before != ink._fingerprint(2, 2, 17, 1, 0.5)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be kept and will be drawn again next time"):
        images, _ = ink.kept(tmp_path / "file", clips=1, frames=1, size=17)
    assert images.equal(ink.draw(1, 1, 17)[0])


# As a data set


@pytest.fixture(scope="module")
def frames(data_folder) -> data.Dataset:
    """The data set as a reader gets it, but not written to disk, where it would take 82 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAELAB_DATA", str(data_folder))
        patch.setattr(ink, "kept", lambda folder, clips, **how: ink.draw(clips, **how))
        return data.load("ink", device="cpu")


def test_the_data_set_is_split_by_clip_and_drawn_with_different_seeds(frames):
    assert frames.name == "ink" and "ink" in data.IMAGES and "ink" in data.NAMES and data.at_hand("ink")
    assert frames.train.images.shape == (640 * 32, 3, 33, 33) and frames.test.images.shape == (64 * 32, 3, 33, 33)
    for split in frames[1:3]:
        assert split.images.dtype == torch.float32 and 0 <= split.images.min() < 0.1 < 0.9 < split.images.max() <= 1
        assert split.labels.dtype == torch.int64 and (split.labels.bincount() > len(split) / 40).all()
    assert frames.num_classes == 8 and frames.class_names == ink.CLASS_NAMES and len(set(ink.CLASS_NAMES)) == 8
    assert not frames.train.images[: 64 * 32].equal(frames.test.images)
    images, labels = ink.draw(2)
    assert frames.train.images[:64].equal(images.float() / 255) and frames.train.labels[:64].equal(labels)


def test_the_pixels_are_those_of_the_book(frames):
    """First what survives a processor that rounds one pixel the other way, then every bit."""
    for split, mean, spread, labels in zip(frames[1:3], MEAN, SPREAD, LABELS, strict=True):
        moments = [
            split.images.mean(dtype=torch.float64).item(),
            split.images.square().mean(dtype=torch.float64).item(),
        ]
        assert math.isclose(moments[0], mean, abs_tol=2e-6)
        assert math.isclose(math.sqrt(moments[1] - moments[0] ** 2), spread, abs_tol=2e-6)
        assert split.labels.bincount().tolist() == labels
    assert frames.digest == DIGEST


def test_the_size_is_drawn_not_resized(monkeypatch):
    calls = []

    def kept(folder, clips, size, seed, correlation):
        calls.append((clips, size, seed, correlation))
        return ink.draw(clips, 1, size, seed, correlation)

    monkeypatch.setattr(ink, "kept", kept)
    loaded = data.load("ink", size=17, correlation=0, device="cpu")
    assert calls == [(640, 17, 0, 0.0), (64, 17, 1, 0.0)]
    assert loaded.train.images.equal(ink.draw(640, 1, 17, 0)[0].float() / 255)


def test_the_defaults_are_one_object_in_memory(frames):
    assert data.load("ink", size=33, correlation=ink.CORRELATION, device="cpu") is frames


def test_only_frames_in_time_have_a_correlation():
    for name in set(data.NAMES) - {"ink"}:
        with pytest.raises(ValueError, match=f"correlation is 0.5, but '{name}' has no frames in time; only 'ink' has"):
            data.load(name, correlation=0.5)
    with pytest.raises(ValueError, match="size is 32; it must be odd and at least 17"):
        data.load("ink", size=32)
    with pytest.raises(ValueError, match="correlation is 1.0; it must be at least 0 and below 1"):
        data.load("ink", correlation=1)
