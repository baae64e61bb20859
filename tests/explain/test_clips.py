"""Clips as strips of frames: each map lies on the frames and places that its tokens show."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad import ClipStrip, explain
from lightning_attngrad.explain import NoAttentionError, UnsupportedModelError
from tests.beyond import clips, timesformer, videomae

MODELS: dict[str, tuple[Callable[[], nn.Module], ClipStrip]] = {
    "TimeSformer": (timesformer, ClipStrip(frames=4)),
    "TimeSformer, joint": (lambda: timesformer("joint_space_time"), ClipStrip(frames=4)),
    "VideoMAE": (videomae, ClipStrip(frames=4, tubelet=2)),
}
METHODS: dict[str, dict[str, str]] = {
    "sum": {"method": "guided_relevance", "combine": "sum"},
    **{name: {"method": name} for name in ("gradient_guided", "attn_lrp", "grad_cam", "raw_attention")},
}


def maps_of(name: str, batch: Tensor, **asked: str) -> Tensor:
    """(B, places, h, w)."""
    build, strip = MODELS[name]
    model = build()
    run = lambda images: model(pixel_values=strip.clips(images))  # noqa: E731
    found = explain(model, strip.images(batch), 1, forward=run, **asked)
    assert found.area == (0, 0, 32, 32 * strip.places)
    return strip.maps(found.heatmap)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_move_with_what_the_frames_show(name: str, method: str) -> None:
    """These models know no positions: whatever order the frames and patches have, each keeps its map."""
    strip, batch, asked = MODELS[name][1], clips(), METHODS[method]
    maps = maps_of(name, batch, **asked)
    assert maps.shape == (2, strip.places, 4, 4)
    assert maps.std() > 0
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * float(maps.abs().max())}

    backwards = batch.unflatten(1, (strip.places, strip.tubelet)).flip(1).flatten(1, 2)
    torch.testing.assert_close(maps_of(name, backwards, **asked), maps.flip(1), **tolerance)

    patches = batch.unflatten(4, (4, 8)).unflatten(3, (4, 8))  # (B, T, C, 4, 8, 4, 8)
    turned = patches.transpose(3, 5).flatten(5, 6).flatten(3, 4)  # rows of patches become columns
    torch.testing.assert_close(maps_of(name, turned, **asked), maps.transpose(2, 3), **tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_by_default_rows_move_with_what_they_show(name: str) -> None:
    """Its gate averages over neighbours, at the seam of two frames over patches of both: rows alone are exact."""
    maps = maps_of(name, clips())
    upside_down = clips().unflatten(3, (4, 8)).flip(3).flatten(3, 4)
    torch.testing.assert_close(maps_of(name, upside_down), maps.flip(2), rtol=1e-3, atol=1e-4 * float(maps.max()))
    assert maps.std() > 0


def test_a_clip_is_found_again() -> None:
    for strip in (ClipStrip(4), ClipStrip(4, tubelet=2), ClipStrip(4, tubelet=4)):
        images = strip.images(clips())
        assert images.shape == (2, 3 * strip.tubelet, 32, 32 * strip.places)
        assert torch.equal(strip.clips(images), clips())
    assert torch.equal(ClipStrip(4).images(clips())[..., 32:64], clips()[:, 1])
    assert torch.equal(ClipStrip(4, tubelet=2).images(clips())[:, 3:, :, 32:], clips()[:, 3])
    panels = torch.arange(24.0).view(1, 2, 2, 6)  # also of several panels
    assert torch.equal(ClipStrip(3).maps(panels)[:, :, 1], panels[..., 2:4])


def test_frames_that_are_read_together_and_lie_apart_are_refused() -> None:
    wrong = ClipStrip(frames=4)  # VideoMAE reads two frames at once
    with pytest.raises((UnsupportedModelError, NoAttentionError), match="a layer over three dimensions"):
        explain(
            videomae(),
            wrong.images(clips()),
            1,
            method="gradient_guided",
            forward=lambda images: videomae()(pixel_values=wrong.clips(images)),
        )


class OverTime(nn.Module):
    """A clip whose frames are blurred over time before they are cut into patches."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blur = nn.Conv3d(3, 3, (kernel, 1, 1), padding=(kernel // 2, 0, 0))
        self.embed = nn.Conv3d(3, 16, (1, 8, 8), stride=(1, 8, 8))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True, norm_first=True)

    def forward(self, strip: Tensor) -> Tensor:
        clips = ClipStrip(4).clips(strip).transpose(1, 2)
        logits: Tensor = self.layer(self.embed(self.blur(clips)).flatten(2).mT).mean(dim=1)
        return logits


def test_frames_that_overlap_are_refused_and_single_ones_followed() -> None:
    strips = ClipStrip(4).images(clips())
    assert explain(OverTime(1).eval(), strips, 1, method="gradient_guided").heatmap.shape == (2, 4, 16)
    with pytest.raises(UnsupportedModelError, match="a layer over three dimensions"):
        explain(OverTime(3).eval(), strips, 1, method="gradient_guided")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClipStrip(0), "frames: got 0; expected an int of at least 1"),
        (lambda: ClipStrip(4, tubelet=3), "tubelet: got 3; expected a number of frames that divides frames=4"),
        (lambda: ClipStrip(8).images(clips()), "clips: got (2, 4, 3, 32, 32); expected (B, 8, C, H, W)"),
        (lambda: ClipStrip(3).clips(torch.rand(1, 3, 8, 8)), "expected strips (B, 1·C, H, 3·W)"),
        (lambda: ClipStrip(3).maps(torch.rand(1, 8, 8)), "with columns for each of 3 frames"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


@pytest.mark.parametrize("method", [*METHODS, "rollout", "conservative"])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_clips_has_the_maps_of_each_alone(name: str, method: str) -> None:
    """TimeSformer takes the class tokens of the first B of its B·T frames, where all hold the same constant."""
    asked = METHODS.get(method, {"method": method})
    batch = torch.cat([clips(), clips().flip(0).roll(1, dims=3)])
    alone = torch.cat([maps_of(name, clip[None], **asked) for clip in batch])
    torch.testing.assert_close(maps_of(name, batch, **asked), alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
