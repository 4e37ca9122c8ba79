import pytest
import torch
import torch.nn.functional as F

from swifti2v_core.attention.read_only import ReadOnlyContext

HEADS = 2


def heads_first(query, key, value):
    """``[B, heads, tokens, channels]`` in and out."""
    return F.scaled_dot_product_attention(query, key, value)


def flat(query, key, value):
    """``[B, tokens, heads * channels]`` in and out, the layout of the host's Wan blocks."""
    parts = [p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (query, key, value)]
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def to_flat(part):
    return part.transpose(1, 2).flatten(2)


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, 10, 4, generator=generator) for _ in range(3)]


def masked(query, key, value, clean):
    """The definition: clean tokens may not see noisy ones."""
    mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
    mask[:clean, clean:] = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def test_both_layouts_equal_masked_attention(parts):
    expected = masked(*parts, clean=4)
    context = ReadOnlyContext(4)
    result = context.attend_window(heads_first, *parts, slot=("a", 0), token_dim=2, output_dim=2)
    assert torch.allclose(result, expected, atol=1e-6)
    result = context.attend_window(flat, *map(to_flat, parts), slot=("b", 0), token_dim=1, output_dim=1)
    assert torch.allclose(result, to_flat(expected), atol=1e-6)


def test_kept_keys_give_what_the_whole_window_gives(parts):
    context = ReadOnlyContext(4)
    whole = context.attend_window(heads_first, *parts, slot=("a", 3), token_dim=2, output_dim=2)
    noisy = [part[:, :, 4:] for part in parts]
    alone = context.attend_noisy(heads_first, *noisy, slot=("a", 3), token_dim=2)
    assert torch.allclose(alone, whole[:, :, 4:], atol=1e-6)


def test_conditionings_and_layers_do_not_mix(parts):
    context = ReadOnlyContext(4)
    assert not context.holds("a")
    context.attend_window(heads_first, *parts, slot=("a", 0), token_dim=2, output_dim=2)
    assert context.holds("a") and not context.holds("b")
    with pytest.raises(KeyError):
        context.attend_noisy(heads_first, *parts, slot=("a", 1), token_dim=2)


def test_kept_keys_do_not_hold_the_window_in_memory(parts):
    context = ReadOnlyContext(4)
    context.attend_window(heads_first, *parts, slot=("a", 0), token_dim=2, output_dim=2)
    key, value = context._stored["a"][0]
    assert key.untyped_storage().nbytes() == value.untyped_storage().nbytes() == 2 * 4 * 4 * 4


def test_kept_bytes_are_those_that_are_kept(parts):
    context = ReadOnlyContext(4)
    for layer in range(3):
        context.attend_window(heads_first, *parts, slot=("a", layer), token_dim=2, output_dim=2)
    kept = sum(t.untyped_storage().nbytes() for pair in context._stored["a"].values() for t in pair)
    assert context.kept_bytes(layers=3, channels=8, element_size=4) == kept
    # TI2V-5B at 2560x1408: what the tooltip says of a clean frame, 1.3 GB.
    assert ReadOnlyContext(3520).kept_bytes(30, 3072, 2) == 1_297_612_800
