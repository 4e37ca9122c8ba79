"""The attention override beside torch.compile and beside a node that hangs its own around any other."""

from contextlib import contextmanager

import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.wan.model import WanModel
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from swifti2v.nodes.comfyui import attention, attention_rules, compiled_model, forward, models
from swifti2v.swifti2v_core.attention.read_only import ReadOnlyContext

import nodes as host_nodes

FRAMES, FRAME_TOKENS, CLEAN, TEXT = 6, 4, 2, 8
"""Latent frames of a sequence, tokens of each, its clean frames, tokens of the text."""

TOKENS = FRAMES * FRAME_TOKENS
RULES = ["bidirectional", "read-only", "noisy alone", "temporal"]


@pytest.fixture(scope="module")
def tiny(pack):
    """A random plain Stage II model with two blocks, quick to compile."""
    network = WanModel(
        model_type="t2v",
        in_dim=48,
        out_dim=48,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=2,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch):
    """What ComfyUI runs on a GPU; on the CPU it takes another attention."""
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)


@pytest.fixture
def eager(monkeypatch):
    """Compile without a compiler: what PyTorch remembers of a first run is the same."""
    monkeypatch.setattr(compiled_model, "COMPILER", "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=64):  # as other packs' nodes set it; PyTorch's is 8
        yield
    torch.compiler.reset()


def plain(model):
    return model


def blocks(model):
    """As our loaders compile."""
    return compiled_model.with_compiled_blocks(model)


def whole(model):
    """As ComfyUI's TorchCompileModel compiles: without guards on the transformer options."""
    compiled = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=compiled, backend="eager", options=options)
    return compiled


def fullgraph_blocks(model):
    """As other packs' nodes compile: block by block, with every guard, and no break allowed."""
    compiled = model.clone()
    count = len(compiled.get_model_object("diffusion_model").blocks)
    keys = [f"diffusion_model.blocks.{index}" for index in range(count)]
    set_torch_compile_wrapper(model=compiled, backend="eager", fullgraph=True, dynamic=False, keys=keys)
    return compiled


COMPILED = [blocks, whole, fullgraph_blocks]


@pytest.fixture
def sampled(run):
    """Sample a latent with a model, by the segment sampler or ComfyUI's own."""

    def sample(model, context, latent, **given):
        if context in ("bidirectional", "read-only"):
            given = {"z_ref": latent, "context": context, "denoise": 0.5, "steps": 2, **given}
            return run("SwiftI2V_SegmentSampler", model=model, **given)[0]["samples"]
        if context == "temporal":
            model = run("SwiftI2V_TemporalWindows", model=model, window_frames=2)[0]
        generator = torch.Generator().manual_seed(1)
        text = [[torch.randn(1, TEXT, 4096, generator=generator), {}]]
        with torch.inference_mode():
            options = (model, 3, 2, 1.0, "euler", "simple", text, text, latent, 0.5)
            return host_nodes.KSampler().sample(*options)[0]["samples"]

    return sample


# --- One block --------------------------------------------------------------------------------------


def rule_of(name, kept=None):
    if name == "temporal":
        return attention_rules.TemporalForward(2, FRAMES, FRAME_TOKENS)
    if name in ("read-only", "noisy alone"):
        noisy = name == "noisy alone"
        tokens = TOKENS - CLEAN * FRAME_TOKENS * noisy
        return attention_rules.ReadOnlyForward(kept, "a", noisy, tokens)
    return None


@contextmanager
def running(model, name, kept, users=None, block=0):
    """Make a forward the running one, and return its options."""
    network, text = model.model.diffusion_model, torch.zeros(1, TEXT, 4096)
    x = torch.zeros(1, 48, FRAMES, 4, 4)
    options = {} if users is None else {attention.OVERRIDE: users}
    planned = forward.plan_forward(network, x, text, options, rule_of(name, kept), always=True)
    forward.set_running(planned)
    planned.options["block_index"] = block
    try:
        yield planned.options
    finally:
        forward.set_running(None)


@pytest.fixture
def block_inputs(tiny):
    """A block, and what it is called with for a number of tokens."""
    generator = torch.Generator().manual_seed(2)

    def inputs(tokens):
        network = tiny.model.diffusion_model
        return {
            "x": torch.randn(1, tokens, 128, generator=generator),
            "e": torch.randn(1, 6, 128, generator=generator),
            "freqs": network.rope_encode(tokens // FRAME_TOKENS, 4, 4, dtype=torch.float32),
            "context": torch.randn(1, TEXT, 128, generator=generator),
        }

    return tiny.model.diffusion_model.blocks[0], inputs


def fill(tiny, block, inputs):
    """Return read-only context that holds a block."""
    kept = ReadOnlyContext(CLEAN * FRAME_TOKENS)
    with running(tiny, "read-only", kept) as options:
        block(**inputs(TOKENS), transformer_options=options)
    return kept


@pytest.mark.parametrize("name", RULES)
def test_a_block_is_one_graph(tiny, block_inputs, eager, name):
    block, inputs = block_inputs
    with torch.inference_mode():
        kept = fill(tiny, block, inputs)
        given = inputs(TOKENS - CLEAN * FRAME_TOKENS * (name == "noisy alone"))
        with running(tiny, name, kept) as options:
            expected = block(**given, transformer_options=options)
        with running(tiny, name, kept) as options:
            found = torch._dynamo.explain(block)(**given, transformer_options=options)
        assert (found.graph_count, found.graph_break_count) == (1, 0)
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        with running(tiny, name, kept) as options:
            ours = compiled(**given, transformer_options=options)
    assert (ours - expected).abs().max() <= 1e-5


def test_one_graph_serves_every_rule_block_and_override(tiny, block_inputs, eager):
    """Guards on the options dropped, as by our loaders: nothing of the first run is kept."""
    block, inputs = block_inputs
    given, results = inputs(TOKENS), []
    options = {"guard_filter_fn": compiled_model.guards_to_keep}
    compiled = torch.compile(block, backend="eager", fullgraph=True, options=options)

    def twice(attend, *args, **kwargs):
        return 2 * attend(*args, **kwargs)

    with torch.inference_mode():
        for name, index, users in (
            ("bidirectional", 0, None),
            ("read-only", 0, None),
            ("temporal", 0, None),
            ("temporal", 1, None),
            ("temporal", 1, twice),
            ("bidirectional", 0, twice),
        ):
            pair = []
            for called in (block, compiled):
                with running(tiny, name, ReadOnlyContext(8), users, index) as options:
                    pair.append(called(**given, transformer_options=options))
            assert (pair[0] - pair[1]).abs().max() <= 1e-5, (name, index)
            results.append(pair[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for number, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-4 for other in results[:number])


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_its_promises_to_the_compiler(heads_in, heads_out, dtype):
    shape = (2, 3, 10, 8) if heads_in else (2, 10, 24)
    settings = (("skip_reshape", heads_in), ("skip_output_reshape", heads_out))
    number = attention._number_of(attention.PLAIN_ATTENTION, 3, (), settings)
    parts = [torch.randn(shape).to(dtype) for _ in range(3)]
    torch.library.opcheck(attention.attend_in_graph, (*parts, number, 0))


def test_an_override_may_return_what_it_was_given(tiny):
    number = attention._number_of(attention.PLAIN_ATTENTION, 3, (), ())
    query = torch.randn(2, 10, 24)
    with running(tiny, "bidirectional", None, users=lambda attend, q, *args, **kwargs: q):
        result = attention.attend_in_graph(query, query, query, number, 0)
    assert torch.equal(result, query) and result.data_ptr() != query.data_ptr()


# --- Compiled models --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", COMPILED)
def test_one_compiled_model_serves_every_context_in_turn(sampled, tiny, make_latent, eager, how):
    compiled, latent, results = how(tiny), make_latent(5, 4, 4), []
    contexts = ("host", "bidirectional", "read-only", "temporal", "bidirectional", "read-only", "host")
    for context in contexts:
        expected = sampled(tiny, context, latent)
        assert (sampled(compiled, context, latent) - expected).abs().max() <= 1e-5, context
        results.append(expected)
    for number, one in enumerate(results[:4]):
        assert all((one - other).abs().max() > 1e-3 for other in results[:number])


@pytest.mark.parametrize("how", [blocks, fullgraph_blocks])
@pytest.mark.parametrize("context", ["bidirectional", "read-only", "temporal"])
def test_compiled_blocks_are_whole_and_shared(sampled, tiny, make_latent, eager, how, context):
    model, latent = how(tiny), make_latent(7, 4, 4)
    sampled(model, context, latent)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    sampled(model, context, latent)
    assert counters["stats"]["unique_graphs"] == graphs
    # Windows of 4 and 5 latent frames, read-only their 3 noisy frames alone, too; or the whole clip.
    lengths = {"bidirectional": 2, "read-only": 3, "temporal": 1}[context]
    assert graphs == 2 * lengths  # the first block's input has strides of its own


@pytest.mark.parametrize(
    ("how", "context"),
    [
        (blocks, "bidirectional"),
        (blocks, "read-only"),
        (blocks, "temporal"),
        (fullgraph_blocks, "bidirectional"),
        (whole, "read-only"),  # the slowest to trace
    ],
)
def test_a_users_override_that_comes_and_goes_is_noticed(sampled, tiny, make_latent, eager, how, context):
    def times(factor):
        model = how(tiny).clone() if how is not whole else compiled.clone()
        model.model_options["transformer_options"][attention.OVERRIDE] = lambda attend, *args, **kwargs: (
            factor * attend(*args, **kwargs)
        )
        return model

    def expected(factor):
        model = tiny.clone()
        model.model_options["transformer_options"][attention.OVERRIDE] = lambda attend, *args, **kwargs: (
            factor * attend(*args, **kwargs)
        )
        return sampled(model, context, latent)

    latent, compiled = make_latent(5, 4, 4), how(tiny)
    without = sampled(tiny, context, latent)
    assert (sampled(compiled, context, latent) - without).abs().max() <= 1e-5
    for factor in (2, 3):
        assert (sampled(times(factor), context, latent) - expected(factor)).abs().max() <= 1e-5
    assert (sampled(compiled, context, latent) - without).abs().max() <= 1e-5
    assert (expected(2) - without).abs().max() > 1e-3


# --- Sparse attention at every step -----------------------------------------------------------------


class Sparse:
    """Stand-in for a node that hangs its override over any other, at once and before each step.

    It takes self-attention of one length for all, from a noise level down, and leaves the rest to what it
    found. Its attention is a quarter weaker, so that results show who attended.
    """

    def __init__(self, from_sigma=1.0):
        self.from_sigma, self.taken, self.left, self.ours = from_sigma, [], [], set()

    def patch(self, model):
        clone = model.clone()
        self.install(clone.model_options["transformer_options"])
        clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, "sparse", self.prepare)
        return clone

    def prepare(self, patcher, timestep, model_options=None):
        if model_options is not None:  # an old ComfyUI passes none, and has no such node either
            self.install(model_options["transformer_options"])

    def install(self, options):
        found = options.get(attention.OVERRIDE)
        if found in self.ours:
            return

        def override(attend, query, key, value, heads, **kwargs):
            lengths = (query.shape[1], key.shape[1])
            sigma = float(kwargs["transformer_options"]["sigmas"][0])
            if query.shape == key.shape and sigma <= self.from_sigma:
                self.taken.append(lengths)
                return 0.75 * attend(query, key, value, heads, **kwargs)
            self.left.append(lengths)
            if found is None:
                return attend(query, key, value, heads, **kwargs)
            return found(attend, query, key, value, heads, **kwargs)

        self.ours.add(override)
        options[attention.OVERRIDE] = override


ORDERS = {
    "alone": lambda how, sparse, model: how(sparse(model)),
    "compiled first": lambda how, sparse, model: sparse(how(model)),
    "both": lambda how, sparse, model: sparse(how(sparse(model))),
}


@pytest.mark.parametrize(
    ("how", "order", "context"),
    [
        *((plain, "alone", context) for context in ("bidirectional", "read-only", "temporal")),
        (plain, "both", "read-only"),
        *((blocks, order, "read-only") for order in ORDERS),
        (blocks, "alone", "bidirectional"),
        (blocks, "alone", "temporal"),
        (whole, "compiled first", "read-only"),  # the slowest to trace
        (whole, "alone", "temporal"),
    ],
)
def test_sparse_attention_takes_what_the_rule_leaves_it(
    sampled, tiny, make_latent, eager, how, order, context
):
    """Read-only: clean frames among themselves, never the whole window or the text."""
    latent, node = make_latent(7, 4, 4), Sparse()
    ours = sampled(ORDERS[order](how, node.patch, tiny), context, latent)
    taken, left = set(node.taken), set(node.left)
    reference = Sparse()
    expected = sampled(reference.patch(tiny), context, latent)
    assert (ours - expected).abs().max() <= 1e-5
    assert (expected - sampled(tiny, context, latent)).abs().max() > 1e-3
    assert (taken, left) == (set(reference.taken), set(reference.left))
    if context == "read-only":
        assert taken == {(4, 4), (8, 8)}  # 1 and 2 clean frames
    if context == "temporal":
        assert taken == {(4, 4), (8, 8)}


@pytest.mark.parametrize("how", [plain, blocks])
def test_dense_steps_then_sparse_ones_keep_the_context(sampled, tiny, make_latent, eager, how):
    """The noisy frames alone have one length in query, key and value, and must still see the clean ones."""
    latent, node = make_latent(7, 4, 4), Sparse(from_sigma=0.4)
    ours = sampled(how(node.patch(tiny)), "read-only", latent, steps=4)
    noisy, windows = 3 * FRAME_TOKENS, (4 * FRAME_TOKENS, 5 * FRAME_TOKENS)
    assert node.taken == []  # only clean frames attend among themselves, in the first step, a dense one
    assert {(noisy, key) for key in (*windows, TEXT)} <= set(node.left)
    assert (ours - sampled(tiny, "read-only", latent, steps=4)).abs().max() <= 1e-5


def test_sparse_attention_in_stage_one(run, tiny, stage_one, vae, photo, eager):
    given = {"vae": vae, "image": photo, "steps": 2, "width": 64, "height": 32, "frames": 5}

    def made(model):
        return run("SwiftI2V_MotionSampler", model_high_noise=model, **given)[1]["samples"]

    node = Sparse()
    expected = made(node.patch(stage_one))
    assert node.taken and node.left
    for how in (blocks, whole):
        assert (made(Sparse().patch(how(stage_one))) - expected).abs().max() <= 1e-5
    assert (made(stage_one) - expected).abs().max() > 1e-4


def test_an_override_hung_around_ours_inside_the_forward_is_no_circle(sampled, tiny, make_latent, eager):
    """Ours is below it, for all blocks, and above it, for the rule."""
    calls = []

    def around(executor, *args, **kwargs):
        args = list(args)
        found = args[5][attention.OVERRIDE]

        def override(attend, *given, **named):
            calls.append(found)
            return found(attend, *given, **named)

        args[5] = args[5] | {attention.OVERRIDE: override}
        return executor(*args, **kwargs)

    latent, model = make_latent(5, 4, 4), blocks(tiny)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "around", around)
    for context in ("bidirectional", "read-only", "temporal"):
        expected = sampled(tiny, context, latent)
        assert (sampled(model, context, latent) - expected).abs().max() <= 1e-5
    assert calls and set(calls) == {attention.override}
