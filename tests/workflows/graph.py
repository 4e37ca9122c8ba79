"""A workflow as it is written down in shipped.py: node types from ComfyUI, nodes laid out in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
OPTIONAL, LIST = 7, 6  # the UI's numbers of the hollow socket and of the grid

# Sizes of the classic canvas, as its own computeSize() counts them.
TITLE, SLOT, WIDGET, PADDING = 30, 20, 24, 14
# Gaps and the lower margin leave room for the taller nodes of "Nodes 2.0".
GAP, GROUP_GAP, MARGIN, LOWER_MARGIN, GROUP_TITLE = 75, 60, 20, 60, 50
COLUMN_GAP = 30


# --- What ComfyUI says about its nodes ------------------------------------------------------------


class Input(NamedTuple):
    """One input of a node type."""

    name: str
    type: str
    optional: bool
    options: dict[str, Any]

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGETS and not self.options.get("forceInput")

    @property
    def is_upload(self) -> bool:
        """Whether the UI puts a button for uploading below the widget."""
        return bool(self.options.get("image_upload") or self.options.get("video_upload"))

    def slots(self) -> list[dict[str, Any]]:
        """Return the input as the UI stores it, with the upload button that it may bring."""
        slot: dict[str, Any] = {"localized_name": self.name, "name": self.name}
        if self.optional:
            slot["shape"] = OPTIONAL
        slot["type"] = self.type
        if self.is_widget:
            slot["widget"] = {"name": self.name}
        slot["link"] = None
        return [slot, upload_slot()] if self.is_upload else [slot]

    def stored(self, value: Any) -> list[Any]:
        """Return what the widget takes in widgets_values: its value and that of its companion."""
        if self.options.get("control_after_generate"):
            return [value, "fixed"]  # the same video again until the user changes the seed
        return [value, "image"] if self.is_upload else [value]


def upload_slot() -> dict[str, Any]:
    """Return the upload button as the UI stores it."""
    return {
        "localized_name": "choose file to upload",
        "name": "upload",
        "type": "IMAGEUPLOAD",
        "widget": {"name": "upload"},
        "link": None,
    }


class NodeType:
    """A node type by ComfyUI's /object_info."""

    def __init__(self, name: str, info: dict[str, Any]) -> None:
        self.name = name
        self.title: str = info["display_name"]
        self.outputs: list[tuple[str, str]] = list(zip(info["output_name"], info["output"], strict=True))
        self.lists: list[bool] = info["output_is_list"]
        module = info["python_module"]
        self.pack = "swifti2v" if module.startswith("custom_nodes.") else "comfy-core"
        found = [
            Input(key, spec[0] if isinstance(spec[0], str) else "COMBO", part == "optional", options(spec))
            for part in ("required", "optional")
            for key, spec in info["input"].get(part, {}).items()
        ]
        # The UI lists sockets first, then what has a widget.
        self.inputs = sorted(found, key=lambda item: item.is_widget)
        self.widgets = [item for item in self.inputs if item.is_widget]

    def height(self) -> int:
        """Return the height that the UI gives the node."""
        sockets = max(len(self.inputs) - len(self.widgets), len(self.outputs))
        rows = sum(len(item.stored(None)) for item in self.widgets)
        return sockets * SLOT + rows * WIDGET + PADDING


def options(spec: list[Any]) -> dict[str, Any]:
    """Return the options of an input in /object_info."""
    return spec[1] if len(spec) > 1 else {}


# --- A graph --------------------------------------------------------------------------------------


@dataclass
class Node:
    """A node of a graph, or a note."""

    id: int
    type: NodeType | None  # None is a note
    x: int
    y: int
    width: int
    height: int
    title: str = ""
    values: dict[str, Any] = field(default_factory=dict)  # a widget's value or an Output
    models: list[dict[str, str]] = field(default_factory=list)
    text: str = ""

    def __getitem__(self, name: str) -> Output:
        """Return an output by name."""
        assert self.type is not None
        slot = [output for output, _ in self.type.outputs].index(name)
        return Output(self.id, slot, self.type.outputs[slot][1])


class Output(NamedTuple):
    """An output of a node in a graph."""

    node: int
    slot: int
    type: str


@dataclass
class Group:
    """A titled box around nodes."""

    title: str
    color: str
    nodes: list[Node] = field(default_factory=list)

    def bounding(self) -> list[int]:
        """Return x, y, width and height of the box."""
        left = min(node.x for node in self.nodes) - MARGIN
        top = min(node.y for node in self.nodes) - TITLE - GROUP_TITLE
        right = max(node.x + node.width for node in self.nodes) + MARGIN
        bottom = max(node.y + node.height for node in self.nodes) + LOWER_MARGIN
        return [left, top, right - left, bottom - top]


class Graph:
    """A workflow that is laid out while it is written down: groups and columns from left to right."""

    def __init__(self, name: str, object_info: dict[str, Any]) -> None:
        self.name = name
        self.object_info = object_info
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self._x, self._y, self._width = 0, 0, 0

    def note(self, width: int, height: int, text: str) -> None:
        """Put a note at the left edge, before the first group."""
        self._x, self._y, self._width = 0, 0, width
        self._place(Node(len(self.nodes) + 1, None, 0, 0, width, height, text=text))

    def group(self, title: str, color: str) -> None:
        """Begin a group to the right of everything so far; a column must follow."""
        self._x += GROUP_GAP - COLUMN_GAP
        self.groups.append(Group(title, color))

    def column(self, width: int) -> None:
        """Begin a column to the right of the one before."""
        self._x, self._y, self._width = self._x + self._width + COLUMN_GAP, 0, width

    def node(
        self,
        name: str,
        *,
        title: str = "",
        picture: int = 0,
        models: list[dict[str, str]] | None = None,
        **inputs: Any,
    ) -> Node:
        """Add a node below the one before, with room for a picture; other inputs keep their default."""
        kind = NodeType(name, self.object_info[name])
        values = checked_values(kind, inputs)
        node = Node(len(self.nodes) + 1, kind, 0, 0, self._width, kind.height() + picture, title, values)
        node.models = models or []
        self._place(node)
        self.groups[-1].nodes.append(node)
        return node

    def _place(self, node: Node) -> None:
        node.x, node.y = self._x, self._y
        self._y += node.height + GAP
        self.nodes.append(node)


def checked_values(kind: NodeType, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a node with defaults filled in; raise KeyError if the names do not fit."""
    if unknown := set(inputs) - {item.name for item in kind.inputs}:
        raise KeyError(f"{kind.name} has no input {sorted(unknown)}")
    values: dict[str, Any] = {}
    for item in kind.inputs:
        if item.name in inputs:
            values[item.name] = inputs[item.name]
        elif item.is_widget:
            values[item.name] = item.options["default"]
        elif not item.optional:
            raise KeyError(f"{kind.name} needs the input {item.name}")
    # JavaScript writes whole numbers without a point.
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in values.items()}
