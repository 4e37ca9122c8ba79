"""Pieces leaving the device while the next one is computed, with a device that only pretends."""

import torch

from swifti2v_core.vae import transfer


def pieces(log):
    for number in range(3):
        log.append(f"compute {number}")
        yield torch.full((2,), float(number))


def test_on_the_cpu_every_piece_is_handed_out_at_once():
    log = []
    for piece in transfer.one_behind(pieces(log)):
        log.append(f"use {int(piece[0])}")
    assert log == ["compute 0", "use 0", "compute 1", "use 1", "compute 2", "use 2"]


def test_behind_a_queue_the_next_piece_is_under_way_before_one_is_used(monkeypatch):
    log = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(f"wait {self.number}")

    monkeypatch.setattr(transfer, "_recorded", lambda device: Event(log[-1].split()[1]))
    for piece in transfer.one_behind(pieces(log)):
        log.append(f"use {int(piece[0])}")
    assert log == [
        *("compute 0", "compute 1", "wait 0", "use 0"),
        *("compute 2", "wait 1", "use 1", "wait 2", "use 2"),
    ]


def test_the_cpu_is_host_memory_already():
    tensor = torch.arange(4.0)
    assert transfer.to_host(tensor) is tensor
    assert list(transfer.one_behind(iter([]))) == []


def test_without_pinned_memory_copies_are_plain(monkeypatch):
    class OnCuda:
        device, shape, dtype = torch.device("cuda"), (2,), torch.float32

        def to(self, device):
            return f"copied to {device}"

    def refused(*args, **kwargs):
        assert kwargs["pin_memory"]
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(transfer.torch, "empty", refused)
    assert transfer.to_host(OnCuda()) == "copied to cpu"


def test_a_shelf_gives_back_what_was_put_last_and_pins_once():
    pinned = []
    shelf = transfer.Shelf(pinned.append)
    assert shelf.take(torch.device("cpu")) == {}
    for value in (1.0, 2.0):
        shelf.put({"a": torch.full((3,), value), "b": torch.full((2, 2), -value)})
    taken = shelf.take(torch.device("cpu"))
    assert torch.equal(taken["a"], torch.full((3,), 2.0))
    assert torch.equal(taken["b"], torch.full((2, 2), -2.0))
    assert len(pinned) == 2
    taken["a"].zero_()  # a strip works on its memory in place
    assert torch.equal(shelf.take(torch.device("cpu"))["a"], torch.full((3,), 2.0))
