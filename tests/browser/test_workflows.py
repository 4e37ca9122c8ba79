"""The shipped workflows, dropped on the page as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_WEIGHTS = {"swifti2v_2k_wan22": 8, "swifti2v_refine": 3}  # files named that no test machine has
NAMES = ("swifti2v_demo", "swifti2v_demo_model_motion", *PUBLIC_WEIGHTS, "swifti2v_any_motion")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def by_id(graph):
    return {node["id"]: node for node in graph["nodes"]}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def file(name):
    """The workflow as it is shipped."""
    return read(ROOT / "workflows" / f"{name}.json")


@pytest.fixture(scope="module")
def opened(name, new_page, pictures):
    """A page on which the workflow was dropped."""
    with new_page() as page:
        page.drop(ROOT / "workflows" / f"{name}.json", "application/json")
        page.picture(pictures / f"{name}-opened.png")
        yield page


def test_every_node_is_there(opened, file):
    kinds = opened.page.evaluate(
        """() => app.rootGraph.nodes.map(node => {
            const registered = LiteGraph.registered_node_types[node.type]
            return [Number(node.id), node.type, Boolean(registered && node instanceof registered)]
        })"""
    )
    assert {number: kind for number, kind, _ in kinds} == {n["id"]: n["type"] for n in file["nodes"]}
    assert [kind for _, kind, known in kinds if not known] == []


def test_every_link_is_there(opened, file):
    links = opened.page.evaluate(
        """() => [...app.rootGraph.links.values()].map(link => [
            link.id, Number(link.origin_id), link.origin_slot,
            Number(link.target_id), link.target_slot, link.type])"""
    )
    assert sorted(links) == sorted(file["links"])


def test_every_widget_has_its_value(opened, file):
    stored = {number: node.get("widgets_values") for number, node in by_id(file).items()}
    shown = {number: node.get("widgets_values") or None for number, node in by_id(opened.graph()).items()}
    assert shown == stored


def test_it_fits_what_it_shows(opened, file):
    """The page enlarges a node that is too small for its content; none may need it."""
    sizes = {number: node["size"] for number, node in by_id(opened.graph()).items()}
    assert sizes == {number: node["size"] for number, node in by_id(file).items()}


def test_nothing_is_reported(opened, name):
    assert opened.errors == []
    if name not in PUBLIC_WEIGHTS:
        expect(opened.page.get_by_test_id("error-overlay")).to_have_count(0)


def test_the_page_queues_the_api_twin(opened, name):
    prompt = opened.prompt()
    for node in prompt.values():
        del node["_meta"]
        node["inputs"].pop("video-preview", None)  # the player in Load Video; ComfyUI ignores it
    twin = read(ROOT / "tests" / "workflows" / f"{name}.json")
    for node in twin.values():
        del node["_meta"]
    assert prompt == twin


def test_picture(opened, name, pictures):
    opened.page.wait_for_function(
        "() => app.rootGraph.nodes.every(node => node.type !== 'LoadImage' || node.imgs?.[0]?.complete)"
    )
    overlay = opened.page.get_by_test_id("error-overlay-dismiss")
    if overlay.count():
        overlay.click()
    # As on a machine that has the weights: without the red frames around their loaders.
    opened.page.evaluate("() => app.rootGraph.nodes.forEach(node => { node.has_errors = false })")
    opened.picture_of_graph(pictures / f"{name}.png")
    assert (pictures / f"{name}.png").stat().st_size > 50_000


@pytest.mark.parametrize(("name", "count"), PUBLIC_WEIGHTS.items())
def test_missing_weights_are_offered_for_download(new_page, name, count):
    """The page lists the files that the graph names, not missing nodes, and knows where to get them."""
    path = ROOT / "workflows" / f"{name}.json"
    models = {m["name"] for node in read(path)["nodes"] for m in node["properties"].get("models", ())}
    assert len(models) == count
    with new_page() as page:
        page.drop(path, "application/json")
        page.page.get_by_test_id("error-overlay-see-errors").click()
        panel = page.page.get_by_test_id("properties-panel")
        for model in models:
            expect(panel).to_contain_text(model)
        expect(panel.get_by_test_id("missing-node-card")).to_have_count(0)
        expect(panel.get_by_test_id("missing-model-download")).to_have_count(len(models))


def test_the_files_are_what_build_would_write(server, tmp_path):
    answer = tmp_path / "object_info.json"
    answer.write_text(json.dumps(server.get("/object_info")), encoding="utf-8")
    command = [
        sys.executable,
        ROOT / "tests" / "workflows" / "build.py",
        "--check",
        "--object-info",
        answer,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
