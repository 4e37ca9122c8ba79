"""Print what decodes and encodes at 2560x1408 take on cards of several sizes, as Markdown.

Run with the folder and the Python that ``python3 dev.py host`` prints::

    COMFYUI_PATH=FOLDER PYTHON tests/fakecuda/table.py [--frames 81] [--cards 6 8 12 16 24 32]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from fake_machine import GIB, Card, boot, fake_machine

HEADER = (
    "| card (GiB) | work | plan | stated need (GiB) | GPU peak (GiB) | RAM (GiB) | pinned memory (GiB) "
    "| to the CPU (GiB) | to the GPU (GiB) | largest tensor (2^31 elements) |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def rows(card: Card, frames: int) -> list[str]:
    """Return the lines of one card."""
    from host_models import wan_vae
    from plans import later_frames_empty, measure, name_of, plan_for

    result = []
    latent_frames = (frames + 3) // 4
    for work in ("decode", "encode"):
        with fake_machine(card) as meter, later_frames_empty():
            vae = wan_vae(48)
            plan = plan_for(work, vae, latent_frames)
            measured = measure(work, meter, vae, plan, latent_frames)
        sizes = (measured.stated, measured.peak, measured.ram, measured.pinned)
        sizes += (measured.to_cpu, measured.to_gpu)
        cells = [f"{size / GIB:.2f}" for size in sizes] + [f"{measured.most_elements / 2**31:.2f}"]
        result.append(f"| {card.gib:g} | {work} | {name_of(plan)} | {' | '.join(cells)} |")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=81, help="length of the clip, 4n+1 (default 81)")
    parser.add_argument(
        "--cards", type=float, nargs="+", default=[6, 8, 12, 16, 24, 32], help="sizes in GiB"
    )
    chosen = parser.parse_args(arguments)
    boot()
    started, used = time.monotonic(), Card().used_gib
    print(f"Counted on a fake GPU: 2560x1408, {chosen.frames} frames, bf16, {used:g} GiB used by others;")
    print(
        "beside the weights of the VAE, without cuDNN's workspace. RAM includes frames that wait in it.\n"
    )
    print(HEADER)
    for gib in chosen.cards:
        print("\n".join(rows(Card(gib), chosen.frames)), flush=True)
    print(f"\nMade in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
