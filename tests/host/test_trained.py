"""The trained tiny model on a scene that nothing was trained on: the extension goes on where the base is lost."""

import pytest

from dev.tiny.autoencoder import SIDE
from dev.tiny.base import FRAMES
from dev.tiny.data import HELD_OUT
from dev.tiny.quality import quality
from dev.tiny.scenes import scene
from dev.tiny.ways import Studio

WHAT = scene(HELD_OUT + 11)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return Studio(tmp_path_factory.mktemp("trained"))


def test_the_base_goes_on_as_the_scene_does(studio):
    assert float(quality(studio.base(WHAT, SIDE), WHAT).psnr.mean()) > 27


def test_the_extension_goes_on_where_the_base_is_lost(studio):
    ours, theirs = (quality(way(WHAT, SIDE), WHAT) for way in (studio.extended, studio.base_too_long))
    assert float(ours.psnr[:FRAMES].mean()) > 25
    assert float(ours.psnr[FRAMES:].mean()) > 22
    assert float((ours.psnr - theirs.psnr)[FRAMES:].mean()) > 3
    assert float(ours.place[FRAMES:].mean()) < 0.05 < float(theirs.place[FRAMES:].mean())
