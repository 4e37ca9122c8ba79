"""The whole way from photos to a measured Stage II, as one list of commands."""

from __future__ import annotations

from pathlib import Path

from .config import Config


def commands(config: Config) -> list[tuple[str, dict[str, str]]]:
    """Return the commands that make the tiny models, in order, each with the settings that it changes.

    Data is prepared twice: references are softened by the Stage I that is trained in between.
    """
    motion = str(Path(config.data.folder).with_name("motion"))
    return [
        ("autoencoder", {}),
        ("export", _export(config.autoencoder.output, config.prepare.autoencoder)),
        ("prepare", {"data.folder": motion, "prepare.stage_one": ""}),
        ("stage1", {"data.folder": motion}),
        ("export", _export(config.stage1.output, config.prepare.stage_one)),
        ("prepare", {}),
        ("stage2", {}),
        ("export", {}),
        ("evaluate", {}),
    ]


def _export(run: str, file: str) -> dict[str, str]:
    return {"export.run": run, "export.file": file}
