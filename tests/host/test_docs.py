"""The help pages say what the nodes are: same inputs, defaults, outputs and error sentences."""

import ast
import re
from pathlib import Path

import pytest

NODES = (
    "SwiftI2V_LoadStageI",
    "SwiftI2V_LoadStageII",
    "SwiftI2V_MotionSampler",
    "SwiftI2V_CameraMotion",
    "SwiftI2V_AnchorEncode",
    "SwiftI2V_PromptRange",
    "SwiftI2V_SegmentSampler",
    "SwiftI2V_SegmentSamplerAdvanced",
    "SwiftI2V_TemporalWindows",
    "SwiftI2V_TiledVAEDecode",
    "SwiftI2V_DecodeToVideo",
)
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"


@pytest.fixture(params=NODES)
def schema(request, pack):
    return pack.nodes[request.param].GET_SCHEMA()


@pytest.fixture
def page(schema):
    return (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")


def table(page, heading):
    """Rows of the table below a heading: the cells, the first one without its backticks."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[row[0].strip("`"), *row[1:]] for row in rows]


def shown_default(value):
    """What the page writes for the default of an input."""
    default = getattr(value, "default", None)
    if default is None:
        # ComfyUI takes the first choice of a list; files have no default that is the same everywhere.
        if "none" in (getattr(value, "options", None) or [])[:1]:
            return "none"
        return "unconnected" if value.optional else "required"
    if isinstance(default, bool):
        return "on" if default else "off"
    if default == "":
        return "empty"
    return default if isinstance(default, str) else f"{default:g}"


def sentences():
    """Every text in the sources, with … for the values put into it."""
    found = set()
    for path in sorted([*(ROOT / "nodes").rglob("*.py"), *(ROOT / "swifti2v_core").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"%[ds]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add("".join(parts))
    return found


def test_every_node_has_its_page_and_every_page_its_node(pack):
    assert set(pack.nodes) == set(NODES) == {path.stem for path in DOCS.glob("*.md")}


def test_title_is_the_display_name(schema, page):
    assert page.startswith(f"# {schema.display_name}\n")


def test_inputs_are_the_schemas(schema, page):
    rows = [(name, kind, default) for name, kind, default, _ in table(page, "Inputs")]
    assert rows == [(i.id, i.get_io_type(), shown_default(i)) for i in schema.inputs]


def test_outputs_are_the_schemas(schema, page):
    rows = [(name, kind) for name, kind, _ in table(page, "Outputs")]
    assert rows == [(o.display_name, o.io_type) for o in schema.outputs]


def test_rows_explain_in_whole_sentences(page):
    for heading in ("Inputs", "Outputs"):
        for row in table(page, heading):
            assert len(row[-1]) >= 15 and row[-1].endswith("."), row


def test_quoted_sentences_are_the_nodes_own(page):
    quoted = [line[2:] for line in page.splitlines() if line.startswith("> ")]
    assert quoted
    known = sentences()
    assert [quote for quote in quoted if quote not in known] == []


def test_page_is_complete_and_plain(page):
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    for heading in ("Wiring", "Inputs", "Outputs", "Good to know", "Troubleshooting"):
        assert heading in headings
    assert 40 <= len(page.splitlines()) <= 120
    # Letters, box drawing, arrows and the ellipsis; no emoji.
    assert set(re.findall(r"[^\x00-\x7f]", page)) <= set("…─│┌┐└┘├┤┬┴┼►")


def test_tooltips_say_something(schema):
    for value in [*schema.inputs, *schema.outputs]:
        name = getattr(value, "display_name", None) or value.id
        assert value.tooltip and len(value.tooltip) >= 20 and value.tooltip.endswith("."), name
    assert schema.description.endswith(".")


@pytest.mark.parametrize("node_id", NODES)
def test_tooltips_state_the_default(pack, node_id):
    """A widget's tooltip names its default, as a reader sees it in the widget."""
    for value in pack.nodes[node_id].GET_SCHEMA().inputs:
        default = shown_default(value)
        if default in ("required", "unconnected") or value.id in ("seed", "filename_prefix"):
            continue
        assert default.lower() in value.tooltip.lower() and "default" in value.tooltip.lower(), value.id
