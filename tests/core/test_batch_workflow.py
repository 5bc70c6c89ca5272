"""What a person gives a batch and is told by it, without a server."""

import json

import pytest

from exvideo_core.batch.client import Output, outputs
from exvideo_core.batch.progress import Progress
from exvideo_core.batch.workflow import read_workflow, titles, with_own_runs, with_texts
from exvideo_core.types import ExVideoError

GRAPH = {"1": {"class_type": "Sampler", "inputs": {}, "_meta": {"title": "SVD 1.1"}}}
SCHEMAS = {
    "Sampler": {
        "input": {
            "required": {"steps": ["INT", {}], "model": ["MODEL"], "note": ["STRING", {}]},
            "optional": {"normalize": ["BOOLEAN", {}], "mode": ["COMBO", {"options": ["a", 5]}], "size": [[1, 2], {}]},
            "hidden": {"prompt": "PROMPT"},
        }
    }
}
SCHEMAS["Sampler"]["input"]["optional"]["fps"] = ["FLOAT", {"forceInput": True}]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1.steps=3", {"steps": 3}),
        ("SVD 1.1.steps=3", {"steps": 3}),
        ("Sampler.note=a=b", {"note": "a=b"}),
        ("Sampler.normalize=True", {"normalize": True}),
        ("Sampler.normalize=false", {"normalize": False}),
        ("Sampler.mode=a", {"mode": "a"}),
        ("Sampler.mode=5", {"mode": 5}),
        ("Sampler.size=2", {"size": 2}),
        ("Sampler.note=5", {"note": "5"}),
    ],
)
def test_a_setting_is_read_as_its_input_takes_it(text, read):
    assert with_texts(GRAPH, [text], SCHEMAS)["1"]["inputs"] == read
    assert GRAPH["1"]["inputs"] == {}


def test_a_workflow_is_read_as_windows_writes_texts(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GRAPH), encoding="utf-8-sig")
    assert read_workflow(tmp_path / "a.json") == GRAPH


def test_an_input_that_is_only_connected_is_not_set():
    for name in ("model", "fps", "prompt"):
        told = f"Sampler has no input {name} to set; it has steps, note, normalize, mode, size"
        with pytest.raises(ExVideoError, match=told):
            with_texts(GRAPH, [f"Sampler.{name}=1"], SCHEMAS)


def test_a_choice_that_is_not_offered_is_told():
    with pytest.raises(ExVideoError, match=r"Sampler\.size should be one of 1, 2; got '3'"):
        with_texts(GRAPH, ["Sampler.size=3"], SCHEMAS)


def test_a_node_without_a_title_is_called_by_its_kind():
    assert titles({"1": {**GRAPH["1"], "_meta": None}}, SCHEMAS) == {"1": "Sampler"}


def test_progress_is_a_line_for_each_node_and_quarter(capsys):
    with Progress({"1": "Sampler", "2": "Decode"}, "a.png: ") as progress:
        for node in ("1", "2"):
            for step in range(1, 9):
                progress.on_event("progress", {"node": node, "value": step, "max": 8})
        progress.on_event("executing", {"node": "3"})
        progress.on_event("progress", {"node": "3", "value": 1, "max": 1})
        progress.on_event("executing", {"node": None})
    quarters = ["", ": 2/8 (25 %)", ": 4/8 (50 %)", ": 6/8 (75 %)", ": 8/8 (100 %)"]
    expected = [f"a.png: {title}{quarter}" for title in ("Sampler", "Decode") for quarter in quarters]
    assert capsys.readouterr().out.splitlines() == [*expected, "a.png: node 3"]


def test_long_runs_that_are_kept_are_each_pictures_own():
    graph = {
        "1": {"class_type": "ExVideoLongSampler", "inputs": {"checkpoint_name": " mine "}},
        "2": {"class_type": "ExVideoLongSampler", "inputs": {"checkpoint_name": " "}},
        "3": {"class_type": "ExVideoLongSampler", "inputs": {"checkpoint_name": ["9", 0]}},
        "4": {"class_type": "Another", "inputs": {"checkpoint_name": "mine"}},
        "5": {"class_type": "ExVideoLongSampler", "inputs": {}},
    }
    named = [node["inputs"].get("checkpoint_name") for node in with_own_runs(graph, "0a1b").values()]
    assert named == ["mine 0a1b", " ", ["9", 0], "mine", None]
    assert graph["1"]["inputs"]["checkpoint_name"] == " mine "


def test_what_other_packs_list_in_the_place_of_files_is_passed_over():
    saved = {"filename": "a.mp4", "subfolder": None}
    made = {"1": {"video": ["b.mp4", "videos"], "gifs": None}, "2": {"images": [{"url": "x"}, {"filename": 1}, saved]}}
    assert outputs({"outputs": made}) == [Output("2", "a.mp4", "", "output")]
