"""The Chinese README says what the English one says, as far as a program can tell: form, code, links and numbers."""

from __future__ import annotations

import json
import re

import pytest

from tests.core.test_documents import CHINESE, NODES, ROOT, links, tables

README = "README.md"
README_ZH = "README.zh.md"
FENCED = re.compile(r"^( *)```.*?\n(?:.*\n)*?\1```$", re.MULTILINE)


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _prose(document: str) -> str:
    """A document without its blocks of code, where `#` begins a comment and links are none."""
    return FENCED.sub("", _text(document))


def _headings(document: str) -> list[tuple[int, str]]:
    """Level and text of each."""
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", _prose(document), re.MULTILINE)]


def _places(document: str) -> dict[str, int]:
    """GitHub's anchors of the headings, and which heading each leads to."""
    texts = [text for _, text in _headings(document)]
    return {"#" + re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"): place for place, text in enumerate(texts)}


def _numbers(text: str) -> list[str]:
    """Numbers and superscripts, sorted: another language puts them in another order."""
    return sorted(re.findall(r"\d+(?:\.\d+)*|⁻?[⁰¹²³⁴-⁹]+", text))


def test_headings_are_of_the_same_levels() -> None:
    assert [level for level, _ in _headings(README_ZH)] == [level for level, _ in _headings(README)]


def test_code_is_the_same() -> None:
    blocks = [[found[0] for found in FENCED.finditer(_text(document))] for document in (README_ZH, README)]
    assert blocks[0] == blocks[1]
    assert "\n".join(blocks[0]).count("```") == _text(README).count("```"), "a block that was not understood"


def test_pictures_are_the_same() -> None:
    pictures = [re.findall(r"!\[[^]]+\]\(([^)\s]+)\)", _prose(document)) for document in (README_ZH, README)]
    assert pictures[0] == pictures[1]


def test_links_lead_to_the_same_files_and_to_chinese_help() -> None:
    theirs = {link for link in links(README) if not link.startswith("#")}
    ours = {link for link in links(README_ZH) if not link.startswith("#")}
    assert README_ZH in theirs
    expected = {re.sub(r"^(web/docs/\w+)\.md$", r"\1/zh.md", link) for link in theirs - {README_ZH}}
    assert ours == expected | {README}


def test_anchors_lead_to_the_same_headings() -> None:
    places = [_places(document) for document in (README_ZH, README)]
    anchors = [[link for link in links(document) if link.startswith("#")] for document in (README_ZH, README)]
    assert set(anchors[0]) <= set(places[0])
    assert {places[0][link] for link in anchors[0]} == {places[1][link] for link in anchors[1]}


def test_tables_have_the_same_form_and_numbers() -> None:
    found = [tables(ROOT / document) for document in (README_ZH, README)]
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        numbers = [[[_numbers(cell) for cell in row] for row in table] for table in (ours, theirs)]
        assert numbers[0] == numbers[1], theirs[0]


def test_sections_have_the_same_numbers() -> None:
    sections = [re.split(r"^#+ .+$", _prose(document), flags=re.MULTILINE) for document in (README_ZH, README)]
    for (_, heading), ours, theirs in zip(_headings(README), sections[0][1:], sections[1][1:], strict=True):
        assert _numbers(ours) == _numbers(theirs), heading


@pytest.mark.parametrize("node", list(NODES))
def test_nodes_are_listed_by_the_names_that_they_are_shown_by(node: str) -> None:
    shown = json.loads(CHINESE.read_text(encoding="utf-8"))[node]["display_name"]
    assert f"| [{shown}](web/docs/{node}/zh.md)（{NODES[node].display_name}） |" in _text(README_ZH)
