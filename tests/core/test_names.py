import re

import pytest

from exvideo_core.names import file_prefix
from exvideo_core.types import ExVideoError

PROMPT = {
    "1": {"class_type": "LoadImage", "_meta": {"title": "Picture"}, "inputs": {"image": "a/b: c.png"}},
    "2": {"class_type": "ExVideoSampler", "inputs": {"seed": 7, "model": ["1", 0]}},
    "3": {"class_type": "ExVideoSampler", "inputs": {"seed": 8}},
}


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("video/%ExVideoSampler.seed%", "video/7"),
        ("%Picture.image%, %LoadImage.image%", "a_b_ c.png, a_b_ c.png"),
        ("%ExVideoSampler.model%", "%ExVideoSampler.model%"),
        ("%year%_v1.5_%ExVideoSampler.seed%", "%year%_v1.5_7"),
        ("100%_1.5_%ExVideoSampler.seed%_%Picture.image%", "100%_1.5_7_a_b_ c.png"),
        ("%ExVideoSampler.sed% %Sampler.seed% 100%", "%ExVideoSampler.sed% %Sampler.seed% 100%"),
    ],
)
def test_inputs_of_the_graph_are_filled_in(prefix, filled):
    assert file_prefix(prefix, PROMPT) == filled


def test_a_title_that_is_nothing_is_none():
    prompt = {"1": {"class_type": "A", "_meta": None, "inputs": {}}, **PROMPT}
    assert file_prefix("%Picture.image%", prompt) == "a_b_ c.png"


def test_the_date_has_a_usual_form():
    written = file_prefix("%date%/%date:yyyy-MM-dd%")
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d)/\1", written)


def test_a_time_with_colons_is_a_name_on_every_system():
    assert re.fullmatch(r"\d\d_\d\d/clip", file_prefix("%date:hh:mm%/clip"))


def test_without_a_graph_they_stay():
    assert file_prefix("%ExVideoSampler.seed%") == "%ExVideoSampler.seed%"


def test_what_is_filled_in_leads_nowhere_else():
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "../../etc/x\\y"}}}
    assert file_prefix("%Text.text%/clip", prompt) == "____etc_x_y/clip"
    assert file_prefix("clip %Text.text%", prompt) == "clip ____etc_x_y"


def test_dots_that_are_filled_in_cost_no_video():
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "wait... what.png"}}}
    assert file_prefix("video/%Text.text%", prompt) == "video/wait_ what.png"


@pytest.mark.parametrize("prefix", ["wait...", "a..b", "..\\x"])
def test_names_that_the_page_would_not_fetch_are_refused(prefix):
    with pytest.raises(ExVideoError, match="two dots"):
        file_prefix(prefix)


@pytest.mark.parametrize("prefix", ["a..b/clip", "video/one. two."])
def test_other_dots_are_fine(prefix):
    assert file_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix",
    ["", "a/", "nul.txt", "video/COM9", "COM¹", "lpt³.x/clip", "CONIN$", "conout$.mp4", "a\tb", "a\x7fb", "a\x85b"],
)
def test_names_that_some_system_cannot_give_a_file_are_refused(prefix):
    with pytest.raises(ExVideoError, match="No file can be called"):
        file_prefix(prefix)


def test_a_value_of_the_graph_with_such_signs_is_no_reason_to_fail():
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "a\x7fb\x85c"}}}
    assert file_prefix("%Text.text%", prompt) == "a_b_c"
