"""The shipped workflows and the help, on the real page in a real browser; pictures of it go to out/page."""

import json

import pytest

from dev.drawn import drawn_workflows
from dev.environment import ROOT
from dev.page import FRONTEND, Page
from dev.sheets import SHEETS
from exvideo_core.formats import encodable_formats

pytestmark = pytest.mark.page

WORKFLOWS = ROOT / "workflows"
SHOTS = ROOT / "out" / "page"
SMALL = {
    "ExVideoConditioning": {"width": 64, "height": 64, "num_frames": 6},
    "ExVideoSampler": {"steps": 2},
    "ExVideoLongSampler": {
        "width": 64, "height": 64, "total_frames": 12, "segment_frames": 8, "overlap": 4, "steps": 2,
    },
    "ExVideoInit": {"num_frames": 6},
    "ExVideoPostTune": {"width": 64, "height": 64, "steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
}  # fmt: skip
VIDEOS = {"ExVideoSave", "ExVideoRender"}


def api(name):
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


WITHOUT_GRAPH = ("gif",)
"""Of these the page reads none."""


def queued(prompt):
    """What a prompt says, but for titles, and for the page's own player."""
    return {
        key: (node["class_type"], {name: value for name, value in node["inputs"].items() if name != "video-preview"})
        for key, node in prompt.items()
    }


def held(graph):
    """What a graph says, but for what the page counts and measures."""
    kept = ("id", "type", "pos", "title", "widgets_values")
    nodes = [{name: node.get(name) for name in kept} for node in graph["nodes"]]
    return sorted(nodes, key=lambda node: node["id"]), sorted(link[1:] for link in graph["links"])


def test_every_workflow_has_both_forms_and_they_are_drawn_from_one(server):
    names = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert names == {path.stem for path in (WORKFLOWS / "api").glob("*.json")} == set(SHEETS)
    for path, text in drawn_workflows(server.get("/object_info")).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is older than its API form: python -m dev.drawn"


@pytest.mark.parametrize("name", sorted(SHEETS))
def test_a_dropped_workflow_opens_clean_runs_and_comes_back(page, server, name):
    page.drop(WORKFLOWS / f"{name}.json")
    page.shot(SHOTS / f"{name}.png")
    assert page.dialogs() == []
    assert page.overlaps() == []
    assert queued(page.prompt()) == queued(api(name))

    page.set(SMALL)
    graph = page.graph()
    before = set((server.base / "output").rglob("*.mp4"))
    events = page.run()
    kinds = [kind for kind, _ in events]
    assert kinds[-1] == "execution_success", events[-1]
    assert "progress" in kinds
    shown = next((node["type"] for node in graph["nodes"] if node["type"] in VIDEOS), None)
    if shown is None:
        page.shot(SHOTS / f"{name}_run.png")
        return
    assert page.playing(shown)
    page.shot(SHOTS / f"{name}_run.png")
    (saved,) = set((server.base / "output").rglob("*.mp4")) - before
    page.drop(saved)
    assert page.dialogs() == []
    assert held(page.graph()) == held(graph)


@pytest.mark.parametrize("format", encodable_formats())
def test_every_format_is_shown_in_the_node_and_brings_its_graph_back(page, server, format):
    page.drop(WORKFLOWS / "interpolate_video.json")
    page.set({"ExVideoSave": {"format": format}})
    graph, before = page.graph(), set((server.base / "output").rglob("*.*"))
    kind, said = page.run()[-1]
    assert kind == "execution_success", said
    shown = page.picture if format == "webp" else page.playing
    assert shown("ExVideoSave")
    page.shot(SHOTS / f"format_{format}.png")
    saved, *_ = sorted(set((server.base / "output").rglob("*.*")) - before)
    if format not in WITHOUT_GRAPH:
        page.drop(saved)
        assert held(page.graph()) == held(graph)


def test_a_missing_model_is_offered_with_its_folder(server):
    models = server.base / "models"
    gone = [models / "checkpoints" / "svd_xt.safetensors", models / "exvideo" / "model.fp16.safetensors"]
    for path in gone:
        path.rename(path.with_suffix(".away"))
    try:
        with Page(server.url) as page:
            page.drop(WORKFLOWS / "image_to_video.json")
            (dialog,) = page.dialogs()
            page.shot(SHOTS / "missing_models.png")
    finally:
        for path in gone:
            path.with_suffix(".away").rename(path)
    for folder, name in (("checkpoints", "svd_xt.safetensors"), ("exvideo", "model.fp16.safetensors")):
        # The folder before the name, or in the line below it.
        assert f"{folder} / {name}" in dialog or f"{name}\n{folder}\n" in dialog


@pytest.mark.parametrize(
    ("locale", "told"),
    [("en", "Samples a long video as the ExVideo authors do"), ("zh", "按 ExVideo 作者的方式采样长视频")],
)
def test_help_opens_in_the_language_of_the_page(server, locale, told):
    with Page(server.url, locale) as page:
        page.drop(WORKFLOWS / "image_to_video.json")
        text = page.help("ExVideoSampler")
        pictures = page.help_pictures()
        page.shot(SHOTS / f"help_{locale}.png", whole=False)
    assert told in text
    assert pictures == [True]


@pytest.mark.skipif(not FRONTEND, reason="that of 0.3.75 shows no videos in them; FRONTEND=… takes a newer")
@pytest.mark.parametrize("name", ["image_to_video", "long_video"])
def test_a_workflow_opens_clean_and_runs_in_nodes_2(server, name):
    with Page(server.url, nodes_2=True) as page:
        page.drop(WORKFLOWS / f"{name}.json")
        assert page.dialogs() == []
        assert page.overlaps() == []
        page.set(SMALL)
        kind, said = page.run()[-1]
        assert kind == "execution_success", said
        assert page.shows_video()
        page.shot(SHOTS / f"{name}_nodes_2.png")


def chinese():
    return json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_page_is_given_chinese_names(server):
    assert server.get("/i18n")["zh"]["nodeDefs"] == chinese()


@pytest.mark.skipif(not FRONTEND, reason="that of 0.3.75 forgets them when it loads its own; FRONTEND=… takes a newer")
def test_the_page_shows_chinese_names(server):
    with Page(server.url, "zh") as page:
        page.drop(WORKFLOWS / "image_to_video.json")
        shown = page.names()
    for kind in ("ExVideoCheckpointLoader", "ExVideoConditioning", "ExVideoSampler", "ExVideoDecode", "ExVideoSave"):
        texts = chinese()[kind]
        assert shown[kind][0] == texts["display_name"]
        assert set(shown[kind][1:]) == {text["name"] for text in texts["inputs"].values()}
