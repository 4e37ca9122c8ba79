"""A real ComfyUI server with the pack, and its page in headless Chromium.

Run with ``python3 dev.py test browser``. With the environment variable ``SWIFTI2V_SCREENSHOTS`` naming
a folder, pictures of the opened workflows and of the finished demo are left there;
``tests/workflows/pictures.py`` makes the repository's pictures of them.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from devtools.comfyui_server import Server  # noqa: E402
from devtools.environment import find_host  # noqa: E402
from devtools.suites import find_browser  # noqa: E402
from devtools.workspace import prepare_workspace  # noqa: E402

WINDOW = {"width": 1600, "height": 900}
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # otherwise the templates cover the first page
    "Comfy.Minimap.Visible": False,  # lies over the graph in pictures
    "Comfy.RightSidePanel.IsOpen": False,
}
# Errors in the console that ComfyUI makes with any workflow, by a part of the text or address.
HOST_NOISE = (
    "/user.css",  # files that a new user does not have
    "/api/userdata",
    "https://huggingface.co/",  # asks for the size of missing models; --disable-api-nodes forbids it
)


# --- The server -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start ComfyUI with the pack, the tiny models and what the workflows load."""
    workspace = tmp_path_factory.mktemp("browser")
    host = find_host()
    prepare_workspace(workspace)
    write_motion(workspace / "input" / "life.jpg", workspace / "input" / "motion.mp4")
    with Image.open(workspace / "input" / "picosdeeuropa.jpg") as photo:
        photo.save(workspace / "input" / "example.png")  # ComfyUI brings a picture of this name
    with Server(host, workspace, log_path=workspace / "server.log") as running:
        yield running


def write_motion(photo: Path, path: Path) -> None:
    """Write a video that begins with the photo and moves into it, as any other tool could make it."""
    with Image.open(photo) as picture, av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(16))
        stream.width, stream.height, stream.pix_fmt = 640, 320, "yuv420p"
        for step in range(21):
            box = (4 * step, 2 * step, picture.width - 4 * step, picture.height - 2 * step)
            frame = np.asarray(picture.convert("RGB").resize((640, 320), box=box))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# --- The page -------------------------------------------------------------------------------------


IDLE = "(!app.extensionManager.spinner && !document.querySelector('.p-blockui-mask'))"


class ComfyPage:
    """ComfyUI's page, used as a user does."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        line = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(noise in line for noise in HOST_NOISE):
            self.errors.append(line)

    def open(self) -> None:
        """Open the page and wait until it takes input; what ComfyUI's own start reports is dropped."""
        self.page.goto(self.url)
        self.page.wait_for_function(
            "() => window.app?.extensionManager?.workflow?.activeWorkflow"
            f" && LiteGraph.registered_node_types.SwiftI2V_DecodeToVideo && {IDLE}"
        )
        self.errors.clear()

    def drop(self, path: Path, kind: str) -> None:
        """Drop a file on an empty place of the canvas."""
        self.page.evaluate(
            """([name, kind, content]) => {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
                const dataTransfer = new DataTransfer()
                dataTransfer.items.add(new File([bytes], name, { type: kind }))
                const place = { clientX: innerWidth / 2, clientY: innerHeight - 40 }
                const options = { bubbles: true, cancelable: true, dataTransfer, ...place }
                for (const event of ['dragenter', 'dragover', 'drop'])
                    document.getElementById('graph-canvas').dispatchEvent(new DragEvent(event, options))
            }""",
            [path.name, kind, base64.b64encode(path.read_bytes()).decode()],
        )
        # The tab has the file's name once the graph is loaded.
        self.page.wait_for_function(
            f"name => app.extensionManager.workflow.activeWorkflow?.filename === name && {IDLE}",
            arg=path.stem,
        )

    def graph(self) -> dict[str, Any]:
        """Return the graph as the page would save it."""
        graph: dict[str, Any] = self.page.evaluate(
            "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"
        )
        return graph

    def prompt(self) -> dict[str, Any]:
        """Return the graph as the page would queue it."""
        prompt: dict[str, Any] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return prompt

    def picture(self, path: Path) -> None:
        """Save a picture of the page."""
        self.page.mouse.move(WINDOW["width"] / 2, WINDOW["height"] - 20)  # away from what has a tooltip
        self.page.screenshot(path=path)

    def picture_of_graph(self, path: Path) -> None:
        """Save a picture of the whole graph without the page around it."""
        before = self.page.viewport_size
        box = self.page.evaluate(PLACE_GRAPH, [GRAPH_SCALE, GRAPH_PLACE])
        left, top = GRAPH_PLACE
        width, height = (round(side * GRAPH_SCALE) for side in box)
        self.page.set_viewport_size({"width": left + width + 40, "height": top + height + 120})
        self.page.wait_for_function("() => app.canvas.canvas.clientWidth === innerWidth")
        self.page.evaluate("() => { app.canvas.setDirty(true, true) }")
        # Two frames: one in which the canvas is drawn, one in which videos and text follow it.
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.page.screenshot(path=path, clip={"x": left, "y": top, "width": width, "height": height})
        self.page.set_viewport_size(before)


GRAPH_SCALE, GRAPH_PLACE = 0.75, (80, 120)  # clear of the page's tool bars
PLACE_GRAPH = """([scale, [left, top]]) => {
    const boxes = app.rootGraph.groups.map(group => [...group.pos, ...group.size])
    const from = [0, 1].map(i => Math.min(...boxes.map(box => box[i])) - 10)
    const to = [0, 1].map(i => Math.max(...boxes.map(box => box[i] + box[i + 2])) + 10)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale - from[0], top / scale - from[1]]
    app.canvas.setDirty(true, true)
    return [to[0] - from[0], to[1] - from[1]]
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox"],  # Chromium refuses to run as root, as it does in CI, otherwise
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def new_page(browser: Browser, server: Server) -> Callable[[], AbstractContextManager[ComfyPage]]:
    """Return a function that opens ComfyUI in a window of its own, for the length of a `with` block."""

    @contextmanager
    def open_page() -> Iterator[ComfyPage]:
        server.post("/settings", SETTINGS)  # the page before may have changed them
        context = browser.new_context(viewport=WINDOW)
        try:
            page = ComfyPage(context.new_page(), server.url)
            page.open()
            yield page
        finally:
            context.close()

    return open_page


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for pictures."""
    folder = os.environ.get("SWIFTI2V_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("pictures")
    path.mkdir(parents=True, exist_ok=True)
    return path
