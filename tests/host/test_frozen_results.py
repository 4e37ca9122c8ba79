"""Results that no change of the code's layout may change.

Three comparisons: with another way to the same result, bit for bit; with the values in
``frozen_results.json``, within a tolerance, on every machine; and with the digests of this machine in
``.frozen.json``, once ``--freeze`` has written them. ``--freeze-portable`` writes the values.
"""

import hashlib
import json
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from frozen_cases import CASES

FOLDER = Path(__file__).parent
PORTABLE, DIGESTS = FOLDER / "frozen_results.json", FOLDER / ".frozen.json"
TOLERANCE = 2e-3
SAMPLES = 16


@pytest.fixture(scope="module")
def reader(run, workspace):
    """A small random concat model that reads its prompts, through the pack's loader."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel
    from safetensors.torch import save_file

    network = WanModel(
        in_dim=96,
        out_dim=48,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=2,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(5)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    name = "frozen_reader.safetensors"
    save_file(state, workspace / "models" / "diffusion_models" / name)
    return run("SwiftI2V_LoadStageII", model_name=name, lora="none", weight_dtype="default")[0]


@pytest.fixture
def kit(run, stage_one, stage_two, reader, experts, vae, vae16, streaming_vae, photo, text, make_latent):
    """Everything that a case needs."""

    def uniform(*shape, seed):
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    def clip(vae_name, batch):
        latent = make_latent(3, 4, 8, seed=1, batch=batch)["samples"]
        return {"samples": latent if vae_name == "streaming_vae" else latent / 2}

    generator = torch.Generator().manual_seed(7)
    flips = torch.cat((photo, photo.flip(2) * 0.7)).movedim(-1, 1)
    return SimpleNamespace(
        run=run,
        models={"concat": stage_two, "plain": stage_one, "reader": reader},
        experts=experts,
        vae=vae,
        vae16=vae16,
        streaming_vae=streaming_vae,
        photo=photo,
        photos=torch.nn.functional.interpolate(flips, (96, 128), mode="area").movedim(1, -1),
        motion=uniform(26, 48, 64, 3, seed=4),
        stills=uniform(2, 96, 128, 3, seed=5),
        text=text,
        more_text=[[[torch.randn(1, 8, 4096, generator=generator), {}]] for _ in range(2)],
        latent=make_latent,
        clip=clip,
    )


@pytest.fixture(scope="module")
def made():
    """Results so far, by case."""
    return {}


@pytest.fixture
def result(kit, made):
    """Return the result of a case, made once."""

    def find(name):
        if name not in made:
            made[name] = tuple(part.detach().cpu().contiguous() for part in CASES[name].make(kit))
        return made[name]

    return find


def digest(parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part.dtype} {list(part.shape)}".encode())
        found.update(part.numpy().tobytes())
    return found.hexdigest()


def moments(parts):
    """Mean, deviation and some values of every part."""
    found = []
    for part in parts:
        values = (part.float() / 255 if part.dtype == torch.uint8 else part).double().flatten()
        stride = len(values) // SAMPLES | 1  # odd, so that it walks through rows and columns
        found.append(
            {
                "shape": list(part.shape),
                "mean": float(values.mean()),
                "deviation": float(values.std(correction=0)),
                "values": values[::stride][:SAMPLES].tolist(),
            }
        )
    return found


def machine():
    """What the bits of a result depend on, beside the code."""
    from comfyui_version import __version__ as comfyui

    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"ComfyUI {comfyui}, torch {torch.__version__}, {processor}"


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path, content):
    """Write one line per entry."""
    lines = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(content.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_another_way_to_a_result_gives_the_same_bits(kit, result, name):
    case = CASES[name]
    once, again = result(name), (case.again or case.make)(kit)
    assert len(once) == len(again)
    for one, two in list(zip(once, again, strict=True))[: case.compared]:
        assert torch.equal(one, two.cpu())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.portable])
def test_a_result_has_the_values_it_has_everywhere(request, result, name):
    found = moments(result(name))
    if CASES[name].portable == "moments":
        for part in found:
            del part["values"]
    if request.config.getoption("--freeze-portable"):
        write(PORTABLE, read(PORTABLE) | {name: json.loads(json.dumps(found), parse_float=short)})
    expected = read(PORTABLE)[name]
    assert len(found) == len(expected)
    for part, wanted in zip(found, expected, strict=True):
        assert part.pop("shape") == wanted.pop("shape")
        assert part.keys() == wanted.keys()
        for key, values in part.items():
            assert values == pytest.approx(wanted[key], rel=TOLERANCE, abs=TOLERANCE), key


def short(number):
    return round(float(number), 5)


def test_every_value_belongs_to_a_case():
    assert set(read(PORTABLE)) == {name for name, case in CASES.items() if case.portable}


def test_the_digests_of_this_machine_are_the_frozen_ones(request, result):
    found = {name: digest(result(name)) for name in CASES}
    if request.config.getoption("--freeze"):
        write(DIGESTS, read(DIGESTS) | {machine(): found})
    known = read(DIGESTS).get(machine())
    if known is None:
        pytest.skip("there are no digests of this machine; --freeze writes them")
    assert found == known
