"""Every node under bad input: it works and is right, or says one sentence of ours before a model loads."""

import inspect
import traceback

import comfy.model_management
import torch
from bad_values import ANYTHING, WAYS
from comfy_api.latest import io
from swifti2v.nodes import load_models

WIDGETS = (io.Int.Input, io.Float.Input, io.Boolean.Input, io.Combo.Input, io.String.Input)


def type_of(socket):
    """The type of an input, the first one where it takes several."""
    return socket.get_io_type().split(",")[0]


class Bench:
    """All nodes by id, with valid examples by type of socket, name of widget or (node id, input)."""

    def __init__(self, nodes, examples, monkeypatch) -> None:
        self._nodes, self._examples, self._loads = nodes, examples, []
        for owner, name in ((comfy.model_management, "load_models_gpu"), (load_models, "load_model")):
            load = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *a, f=load, **k: (self._loads.append(f), f(*a, **k))[1])

    def ways(self, node_id):
        """Return every (input, way, function that spoils it) of a node."""
        return [
            (each, name, make)
            for each in self._inputs(node_id)
            for name, make in {**ANYTHING, **WAYS.get(type_of(each), {})}.items()
        ]

    def _inputs(self, node_id):
        node = self._nodes[node_id]
        accepted = inspect.signature(node.execute).parameters
        return [each for each in node.GET_SCHEMA().inputs if each.id in accepted]

    def spoil(self, node_id, *changes):
        """Return inputs with which the node works, but for the ways put in."""
        values = {}
        for each in self._inputs(node_id):
            usual = self._examples.get(each.id if isinstance(each, WIDGETS) else type_of(each))
            default = getattr(each, "default", None) if usual is None else usual
            values[each.id] = self._examples.get((node_id, each.id), default)
        for each, _, make in changes:
            values[each.id] = make(each if isinstance(each, WIDGETS) else values[each.id])
        return values

    def judge(self, node_id, values):
        """Run a node and return "works" or its sentence; raise AssertionError if it is neither."""
        self._loads.clear()
        before = _copies(values)
        try:
            outputs = self._run(node_id, values)
        except ValueError as error:
            sentence = str(error)
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "custom_nodes" in last and "swifti2v" in last, f"an error from elsewhere: {error!r}"
            late = "came out as NaN" in sentence or "decoded frames hold NaN" in sentence
            assert late or not self._loads, f"refused after a model was loaded: {sentence}"
            assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 700, sentence
            assert " but " in sentence or ";" in sentence, f"no rule: {sentence}"
            return sentence
        _check_outputs(node_id, values, outputs)
        assert all(map(torch.equal, before, _copies(values))), "an input was changed"
        plain = {name: _plain(value) for name, value in values.items()}
        if list(map(_form, values.values())) != list(map(_form, plain.values())):
            for one, other in zip(_tensors(outputs), _tensors(self._run(node_id, plain)), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, check_dtype=False)
        return "works"

    def _run(self, node_id, values):
        node = self._nodes[node_id].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        with torch.inference_mode():
            return node.execute(**values).args


def _tensors(value):
    """Return all tensors inside outputs or inputs."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in parts for tensor in _tensors(each)]


def _copies(values):
    """Return copies that compare equal also where they hold NaN."""
    return [tensor.detach().to(torch.float64).nan_to_num(nan=1e9) for tensor in _tensors(values)]


def _plain(value):
    """Return a value with its tensors as contiguous float32 and without foreign entries."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float32).contiguous() if value.is_floating_point() else value
    if isinstance(value, dict):
        known = ("samples", "swifti2v_keyframe_times", "batch_index", "noise_mask")
        return {key: _plain(each) for key, each in value.items() if "samples" not in value or key in known}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _form(value):
    keys = list(value) if isinstance(value, dict) else None
    return keys, [(each.dtype, each.stride(), each.requires_grad) for each in _tensors(value)]


def _check_outputs(node_id, values, outputs):
    assert all(torch.isfinite(tensor).all() for tensor in _tensors(outputs)), "the result is not finite"
    clips = len(values["image"]) if "image" in values else 1
    if node_id in ("SwiftI2V_MotionSampler", "SwiftI2V_CameraMotion"):
        given = values["overlap_frames"] - 3 if values.get("continue_from") is not None else 0
        assert len(outputs[0]) == clips * (values["frames"] - given)
        assert outputs[0].shape[1:] == (values["height"], values["width"], 3)
        assert outputs[0].dtype == torch.float32
    elif node_id == "SwiftI2V_AnchorEncode":
        cells = values["height"] // 16, values["width"] // 16
        assert outputs[0]["samples"].shape == (clips, 48, (values["frames"] - 1) // 4 + 1, *cells)
    elif node_id.startswith("SwiftI2V_SegmentSampler"):
        assert outputs[0]["samples"].shape == values["z_ref"]["samples"].shape
        assert outputs[0]["samples"].dtype == torch.float32
    elif node_id == "SwiftI2V_TiledVAEDecode":
        clips, _, frames, height, width = values["samples"]["samples"].shape
        assert outputs[0].shape == (clips * (4 * frames - 3), height * 16, width * 16, 3)
