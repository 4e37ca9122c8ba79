from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from swifti2v_core.attention import kernels

HOPPER, ADA, BLACKWELL = (9, 0), (8, 9), (12, 0)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "query_tokens", "key_tokens", "chosen"),
    [
        (HOPPER, torch.bfloat16, 128, 17600, 17600, True),  # a window at 2560x1408
        (HOPPER, torch.float16, 64, 4096, 4096, True),
        (HOPPER, torch.bfloat16, 128, 10560, 17600, True),  # noisy frames of read-only context
        (HOPPER, torch.bfloat16, 128, 17600, 512, False),  # text
        (HOPPER, torch.bfloat16, 128, 4095, 17600, False),
        (HOPPER, torch.bfloat16, 256, 17600, 17600, False),
        (HOPPER, torch.float32, 128, 17600, 17600, False),
        (ADA, torch.bfloat16, 128, 17600, 17600, False),
        (BLACKWELL, torch.bfloat16, 128, 17600, 17600, False),
        (None, torch.bfloat16, 128, 17600, 17600, False),  # no NVIDIA card
    ],
)
def test_cudnn_is_preferred_where_it_was_measured(
    capability, dtype, head_dim, query_tokens, key_tokens, chosen
):
    assert kernels.KERNEL_ORDER  # this PyTorch can prefer a kernel
    assert kernels.prefers_cudnn(capability, dtype, head_dim, query_tokens, key_tokens) is chosen


def test_an_old_pytorch_chooses_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "KERNEL_ORDER", [])
    assert not kernels.prefers_cudnn(HOPPER, torch.bfloat16, 128, 17600, 17600)


def test_only_nvidia_cards_have_a_capability(monkeypatch):
    monkeypatch.setattr(kernels, "get_device_capability", lambda device: (9, 0))
    cuda, cpu = SimpleNamespace(type="cuda"), torch.device("cpu")
    assert kernels.nvidia_capability(cpu) is None
    monkeypatch.setattr(torch.version, "hip", None)
    assert kernels.nvidia_capability(cuda) == (9, 0)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # gfx90a calls itself 9.0, too
    assert kernels.nvidia_capability(cuda) is None


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
def test_every_layout_is_plain_attention(heads_in, heads_out):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, tokens, 8, generator=generator) for tokens in (5, 7, 7)]
    given = parts if heads_in else [part.transpose(1, 2).flatten(2) for part in parts]
    result = kernels.attend_cudnn_first(*given, 3, heads_in=heads_in, heads_out=heads_out)
    expected = F.scaled_dot_product_attention(*parts)
    expected = expected if heads_out else expected.transpose(1, 2).flatten(2)
    assert result.shape == expected.shape
    assert torch.allclose(result, expected, atol=1e-6)


def test_cudnn_comes_first_and_nothing_stays_set(monkeypatch):
    seen, attention = [], F.scaled_dot_product_attention

    def spy(*parts):
        seen.append(torch._C._get_sdp_priority_order())
        return attention(*parts)

    before = torch._C._get_sdp_priority_order()
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    part = torch.ones(1, 1, 4, 8)
    kernels.attend_cudnn_first(part, part, part, 1, heads_in=True, heads_out=True)
    assert seen[0][: len(kernels.KERNEL_ORDER)] == [int(kernel) for kernel in kernels.KERNEL_ORDER]
    assert torch._C._get_sdp_priority_order() == before
