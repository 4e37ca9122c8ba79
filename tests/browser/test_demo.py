"""The demo, queued with the page's own button and watched until its video plays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "workflows" / "swifti2v_demo.json"
SAMPLER, OUTPUT = "SwiftI2V_SegmentSampler", "SwiftI2V_DecodeToVideo"
STEPS = 3 * 4  # segments of 3 of the 8 latent frames after the photo, steps in each
MINUTES = 10 * 60_000

# What the page's own connection brings; every preview is kept as a short digest.
WATCH = """() => {
    window.seen = { progress: [], bar: [], previews: [], end: '' }
    const node = id => app.rootGraph.getNodeById(id)
    app.api.addEventListener('progress_state', ({ detail }) => {
        for (const state of Object.values(detail.nodes))
            seen.progress.push([node(state.display_node_id).type, state.value, state.max])
        requestAnimationFrame(() => seen.bar.push(app.rootGraph.nodes.map(({ progress }) => progress ?? 0)))
    })
    app.api.addEventListener('b_preview_with_metadata', async ({ detail }) => {
        const hash = await crypto.subtle.digest('SHA-1', await detail.blob.arrayBuffer())
        seen.previews.push([node(detail.displayNodeId).type, new Uint8Array(hash).join()])
    })
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, ({ detail }) => { seen.end = end + ' ' + JSON.stringify(detail) })
}"""


@pytest.fixture(scope="module")
def finished(new_page, pictures):
    """The page after the demo ran, and what it saw meanwhile."""
    with new_page() as page:
        page.drop(DEMO, "application/json")
        page.page.evaluate(WATCH)
        page.page.get_by_test_id("queue-button").click()
        page.page.wait_for_function(
            f"() => seen.previews.length >= {STEPS // 2} || seen.end", timeout=MINUTES
        )
        page.picture(pictures / "demo-running.png")
        page.page.wait_for_function("() => seen.end", timeout=MINUTES)
        page.seen = page.page.evaluate("() => seen")
        yield page


@pytest.fixture(scope="module")
def video(finished, server):
    """The file that the demo saved."""
    (path,) = (server.workspace / "output" / "video").glob("SwiftI2V_demo*.mp4")
    return path


def test_it_finishes_without_a_report(finished):
    assert finished.seen["end"].startswith("execution_success")
    assert finished.errors == []
    expect(finished.page.get_by_test_id("error-overlay")).to_have_count(0)


def test_the_sampler_s_progress_moves_once_over_all_segments(finished):
    values = [(value, top) for kind, value, top in finished.seen["progress"] if kind == SAMPLER]
    steps = [value for value, top in values if top == STEPS]
    assert steps == sorted(steps)
    assert {*range(1, STEPS + 1)} <= {*steps}
    bars = [max(bar) for bar in finished.seen["bar"]]
    assert any(0 < bar < 1 for bar in bars), "the bar on the node never stood between its ends"


def test_previews_come_and_change(finished):
    previews = [digest for kind, digest in finished.seen["previews"] if kind == SAMPLER]
    assert len(previews) >= STEPS // 2
    assert len({*previews}) >= STEPS // 2


def test_the_video_plays_in_the_page(finished, pictures):
    player = finished.page.locator("video")
    expect(player).to_have_count(1)
    finished.page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    shown = player.evaluate("v => [v.videoWidth, v.videoHeight, v.duration, decodeURIComponent(v.src)]")
    assert shown[:2] == [1280, 640]
    assert shown[2] == pytest.approx(33 / 16, abs=0.07)
    assert "SwiftI2V_demo" in shown[3]
    player.evaluate("v => v.play()")
    finished.page.wait_for_function("() => document.querySelector('video').currentTime > 0.5")
    player.evaluate("v => v.pause()")
    expect(finished.page.get_by_test_id("queue-notification-banner")).to_have_count(0, timeout=30_000)
    finished.picture(pictures / "demo-finished.png")
    finished.picture_of_graph(pictures / "swifti2v_demo-finished.png")


def test_the_saved_video_brings_the_graph_back(new_page, finished, video):
    with new_page() as page:
        page.drop(video, "video/mp4")
        restored, shipped = page.graph(), json.loads(DEMO.read_text(encoding="utf-8"))
        assert page.errors == []
    for part in ("links", "groups"):
        assert restored[part] == shipped[part]
    kept = ("type", "pos", "inputs", "outputs", "widgets_values", "properties")
    pick = [{n["id"]: {key: n.get(key) for key in kept} for n in g["nodes"]} for g in (restored, shipped)]
    assert pick[0] == pick[1]
