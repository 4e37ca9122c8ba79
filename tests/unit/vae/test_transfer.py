"""Copies to CPU memory that overlap with computing the next piece, on a simulated device."""

import torch

from swifti2v_core.vae import transfer


def pieces(log):
    for number in range(3):
        log.append(f"compute {number}")
        yield torch.full((2,), float(number))


def test_on_the_cpu_every_piece_is_yielded_at_once():
    log = []
    for piece in transfer.delayed_by_one(pieces(log)):
        log.append(f"use {int(piece[0])}")
    assert log == ["compute 0", "use 0", "compute 1", "use 1", "compute 2", "use 2"]


def test_on_a_stream_the_next_piece_is_queued_before_one_is_used(monkeypatch):
    log = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(f"wait {self.number}")

    monkeypatch.setattr(transfer, "_record_event", lambda device: Event(log[-1].split()[1]))
    for piece in transfer.delayed_by_one(pieces(log)):
        log.append(f"use {int(piece[0])}")
    assert log == [
        *("compute 0", "compute 1", "wait 0", "use 0"),
        *("compute 2", "wait 1", "use 1", "wait 2", "use 2"),
    ]


def test_a_cpu_tensor_is_not_copied():
    tensor = torch.arange(4.0)
    assert transfer.to_cpu(tensor) is tensor
    assert list(transfer.delayed_by_one(iter([]))) == []


def test_without_pinned_memory_copies_are_plain(monkeypatch):
    class OnCuda:
        device, shape, dtype = torch.device("cuda"), (2,), torch.float32

        def to(self, device):
            return f"copied to {device}"

    def refused(*args, **kwargs):
        assert kwargs["pin_memory"]
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(transfer.torch, "empty", refused)
    assert transfer.to_cpu(OnCuda()) == "copied to cpu"
