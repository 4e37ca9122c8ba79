"""The help page of every node, asked for with the page's own button."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page(new_page):
    with new_page() as opened:
        yield opened


@pytest.fixture(scope="module")
def nodes(server):
    return sorted(name for name in server.get("/object_info") if name.startswith("SwiftI2V_"))


def test_every_node_has_a_page_and_every_page_a_node(nodes):
    assert sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md")) == nodes


def test_the_info_button_shows_the_page(page, nodes):
    for node in nodes:
        lines = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8").splitlines()
        heading = next(line.lstrip("# ") for line in lines if line.startswith("#"))
        page.page.evaluate(
            """type => {
                app.rootGraph.clear()
                const node = LiteGraph.createNode(type)
                app.rootGraph.add(node)
                app.canvas.ds.offset = [600, 400]
                app.canvas.selectNode(node)
            }""",
            node,
        )
        address = f"{page.url}/extensions/swifti2v/docs/{node}.md"
        with page.page.expect_response(address) as answer:
            page.page.get_by_test_id("info-button").click()
        assert answer.value.ok
        expect(page.page.get_by_text(heading, exact=True).first).to_be_visible()
