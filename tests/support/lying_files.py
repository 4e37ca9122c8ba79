"""Safetensors files whose headers lie, by hand."""

import json
import struct

FIRST_LAYER = "patch_embedding.weight"
SHAPE = [8, 48, 1, 2, 2]
BYTES = 8 * 48 * 4 * 4


def written(header, data=b"", length=None):
    """A safetensors file by hand: the length of its header, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape=SHAPE, dtype="F32", offsets=(0, BYTES)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DATA = bytes(BYTES)
GOOD = {FIRST_LAYER: tensor()}
LIES = {
    "empty": b"",
    "short": b"\x01\x02",
    "length beyond the file": written(GOOD, DATA, length=10**6),
    "length of 2**64 - 1": written(GOOD, DATA, length=2**64 - 1),
    "length of 0": written(GOOD, DATA, length=0),
    "cut off": written(GOOD, DATA[:100]),
    "too long": written(GOOD, DATA + b"more"),
    "shape of 10 GB": written({FIRST_LAYER: tensor([5120, 524288, 1, 1, 1])}, DATA),
    "shape that overflows": written({FIRST_LAYER: tensor([2**62, 2**62, 4, 1, 1])}, DATA),
    "negative shape": written({FIRST_LAYER: tensor([-8, 48, 1, 2, 2])}, DATA),
    "fractional shape": written({FIRST_LAYER: tensor([8.5, 48, 1, 2, 2])}, DATA),
    "flat first layer": written({FIRST_LAYER: tensor([BYTES // 4])}, DATA),
    "first layer of no dimension": written({FIRST_LAYER: tensor([], offsets=(0, 4))}, DATA[:4]),
    "unknown type": written({FIRST_LAYER: tensor(dtype="F1024")}, DATA),
    "type of another size": written({FIRST_LAYER: tensor(dtype="F64")}, DATA),
    "integers": written({FIRST_LAYER: tensor(dtype="I32")}, DATA),
    "truths": written({FIRST_LAYER: tensor(dtype="BOOL", offsets=(0, BYTES // 4))}, DATA[: BYTES // 4]),
    "negative offset": written({FIRST_LAYER: tensor(offsets=(-4, BYTES - 4))}, DATA),
    "offsets backwards": written({FIRST_LAYER: tensor(offsets=(BYTES, 0))}, DATA),
    "offsets beyond": written({FIRST_LAYER: tensor(offsets=(2**60, 2**60 + BYTES))}, DATA),
    "overlapping": written({**GOOD, "other": tensor()}, DATA),
    "a gap": written({FIRST_LAYER: tensor(offsets=(4, BYTES + 4))}, DATA + b"gap!"),
    "a name twice": written(
        b'{"%s":%s,"%s":%s}'
        % ((FIRST_LAYER.encode(), json.dumps(tensor()).encode(), FIRST_LAYER.encode(), b'{"dtype":"F32"}')),
        DATA,
    ),
    "no header": written(b"[1, 2, 3]"),
    "null": written(b"null"),
    "no JSON": written(b"{'a': 1}"),
    "deep JSON": written(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "deep lists": written(b'{"a":{"dtype":"F32","shape":' + b"[" * 10**5 + b"]" * 10**5 + b"}}"),
    "no UTF-8": written(b'{"\xff\xfe":1}'),
    "null bytes": written(b'{"a\x00b":1}'),
    "metadata of numbers": written({"__metadata__": {"a": 1}, **GOOD}, DATA),
    "header of 100 MB": written(b'{"a":"' + b"x" * 100_000_001 + b'"}'),
    "no first layer": written({"other": tensor()}, DATA),
    "half a surrogate pair": written(b'{"\\ud800":1}'),
}
