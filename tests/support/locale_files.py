"""The translations of the nodes in ``locales/``, as ComfyUI reads them, and their English source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"

LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr", "de", "es", "ru", "pt-BR")
"""ComfyUI's codes of the languages beside English."""


def english(nodes: dict[str, Any]) -> dict[str, Any]:
    """Return the English texts of nodes, in the form of ComfyUI's ``nodeDefs.json``."""
    return {node_id: _texts(node.GET_SCHEMA()) for node_id, node in sorted(nodes.items())}


def _texts(schema: Any) -> dict[str, Any]:
    outputs = enumerate(schema.outputs)
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.id, "tooltip": each.tooltip} for each in schema.inputs},
        "outputs": {
            str(index): {"name": each.display_name, "tooltip": each.tooltip} for index, each in outputs
        },
    }


def read(language: str) -> dict[str, Any]:
    """Return the texts of a language."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def write(language: str, texts: dict[str, Any]) -> None:
    """Write the texts of a language."""
    path = LOCALES / language / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
