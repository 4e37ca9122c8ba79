"""Every node under bad input: valid examples, `bad_values` put into them, and a judge of what comes of it.

A node either works and is right, or answers with one sentence of ours before a model loads. Nothing else.
"""

from __future__ import annotations

import inspect
import shutil
import traceback
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from bad_values import ANYTHING, WAYS
from comfy_api.latest import io
from swifti2v.nodes import load_models

WIDGETS = (io.Int.Input, io.Float.Input, io.Boolean.Input, io.Combo.Input, io.String.Input)


class Bench:
    """All nodes with a valid example each, small and quick, and the judge.

    Parameters
    ----------
    pack
        The loaded pack.
    kinds
        Valid values by type of socket, and by (node id, input) where a node needs its own.
    """

    def __init__(self, pack, kinds: dict[Any, Any], monkeypatch) -> None:
        self.pack, self._kinds = pack, kinds
        self._loads = 0
        load = comfy.model_management.load_models_gpu
        file = load_models.load_model
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", self._counted(load))
        monkeypatch.setattr(load_models, "load_model", self._counted(file))

    def _counted(self, function):
        def counted(*args, **kwargs):
            self._loads += 1
            return function(*args, **kwargs)

        return counted

    def inputs(self, node_id):
        """Return the node's inputs from its schema."""
        accepted = inspect.signature(self.pack.nodes[node_id].execute).parameters
        return [each for each in self.pack.nodes[node_id].GET_SCHEMA().inputs if each.id in accepted]

    def valid(self, node_id):
        """Return inputs with which the node works."""
        values = {}
        for each in self.inputs(node_id):
            for key in ((node_id, each.id), each.id if isinstance(each, WIDGETS) else each.io_type):
                if key in self._kinds:
                    values[each.id] = self._kinds[key]
                    break
            else:
                if getattr(each, "default", None) is not None:
                    values[each.id] = each.default
                elif not each.optional:
                    raise KeyError(f"{node_id} needs an example of {each.id}")
        return values

    def ways(self, node_id):
        """Return every (input, `Bad`) of a node."""
        return [(each, way) for each in self.inputs(node_id) for way in self.ways_of(each)]

    @staticmethod
    def ways_of(each):
        """Return every `Bad` of an input."""
        return ANYTHING + WAYS.get(each.io_type, [])

    def spoil(self, node_id, *changes):
        """Return the node's valid inputs with some (input, `Bad`) put in."""
        values = self.valid(node_id)
        for each, way in changes:
            is_widget = isinstance(each, WIDGETS)
            example = each if is_widget else values.get(each.id, self._kinds.get(each.io_type))
            values[each.id] = way.make(example)
        return values

    def judge(self, node_id, values):
        """Run a node and return "works" or its sentence; raise AssertionError if it is neither."""
        self._loads, before = 0, _copies(values)
        try:
            outputs = self._run(node_id, values)
        except ValueError as error:
            sentence = str(error)
            assert self._is_ours(error), f"another's error: {error!r}"
            assert self._loads == 0 or _in_the_course(sentence), (
                f"said after a model was loaded: {sentence}"
            )
            assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 700, sentence
            assert " but " in sentence or ";" in sentence, f"no rule: {sentence}"
            return sentence
        _check_outputs(node_id, values, outputs)
        assert all(map(_same, before, _copies(values))), "an input was changed"
        plain = {name: _plain(value) for name, value in values.items()}
        if any(_is_other(values[name], plain[name]) for name in values):
            for one, other in zip(_tensors(outputs), _tensors(self._run(node_id, plain)), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, check_dtype=False)
        return "works"

    def _run(self, node_id, values):
        node = self.pack.nodes[node_id].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        with torch.inference_mode():
            return node.execute(**values).args

    def _is_ours(self, error):
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        return "custom_nodes" in last and "swifti2v" in last


def _in_the_course(sentence):
    """Tell whether a sentence is about something that only shows in the middle of the work."""
    return any(words in sentence for words in ("came out as NaN", "decoded frames hold NaN"))


def _tensors(value):
    """Return all tensors inside outputs or inputs."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in _tensors(each)]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def _copies(values):
    small = (
        t for t in _tensors(values) if not t.is_meta and t.numel() < 10**6 and t.layout is torch.strided
    )
    return [tensor.detach().clone() for tensor in small]


def _same(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if one.ndim else bool(one == other)


def _plain(value):
    """Return a value with its tensors as contiguous float32 and without foreign entries."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to(torch.float32).contiguous()
    if isinstance(value, dict):
        known = ("samples", "swifti2v_keyframe_times", "batch_index")
        return {key: _plain(each) for key, each in value.items() if "samples" not in value or key in known}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def _is_other(value, plain):
    if isinstance(value, dict) and value.keys() != plain.keys():
        return True
    pairs = zip(_tensors(value), _tensors(plain), strict=False)
    return any(a.dtype != b.dtype or a.stride() != b.stride() or a.requires_grad for a, b in pairs)


def _check_outputs(node_id, values, outputs):
    for tensor in _tensors(outputs):
        assert torch.isfinite(tensor).all(), "the result is not finite"
    clips = len(values["image"]) if isinstance(values.get("image"), torch.Tensor) else 1
    if node_id in ("SwiftI2V_MotionSampler", "SwiftI2V_CameraMotion"):
        assert outputs[0].shape == (clips * values["frames"], values["height"], values["width"], 3)
        assert outputs[0].dtype == torch.float32
    elif node_id == "SwiftI2V_AnchorEncode":
        cells = values["height"] // 16, values["width"] // 16
        assert outputs[0]["samples"].shape == (clips, 48, (values["frames"] - 1) // 4 + 1, *cells)
    elif node_id.startswith("SwiftI2V_SegmentSampler"):
        assert outputs[0]["samples"].shape == values["z_ref"]["samples"].shape
        assert outputs[0]["samples"].dtype == torch.float32
    elif node_id == "SwiftI2V_TiledVAEDecode":
        samples = values["samples"]["samples"]
        clips, _, frames, height, width = samples.shape
        assert outputs[0].shape == (clips * (4 * frames - 3), height * 16, width * 16, 3)


def forget_files(folder: Path) -> None:
    """Empty the output folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
