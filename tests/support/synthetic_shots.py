"""Shots and video files whose content is known."""

import av
import numpy as np
import torch
import torch.nn.functional as F


def world(seed, width=640, height=64):
    """A wide picture of coarse and fine shapes; each seed has its own colors."""
    generator = torch.Generator().manual_seed(seed)
    tint = torch.rand(3, 1, 1, generator=generator) * 0.5
    layers = [
        F.interpolate(
            torch.rand(1, 3, 64 // n, 640 // n, generator=generator), (height, width), mode="bicubic"
        )
        for n in (16, 4)
    ]
    return (tint + 0.25 * layers[0][0] + 0.25 * layers[1][0]).clamp(0, 1)


def shot(seed, frames, speed=0, noise=0.0, light=None):
    """Thumbnails of a shot: a view of 32x32 that moves over its world, `speed` pixels a frame."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for frame in range(frames):
        left = round(frame * speed) % 600
        view = F.avg_pool2d(world(seed).roll(-left, 2)[:, :, :64], 2)
        view = view + noise * torch.randn(view.shape, generator=generator)
        views.append(view * (1.0 if light is None else light(frame)))
    return (torch.stack(views).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)


def write_video(path, pictures, rate, codec="libx264"):
    """Save pictures ``[F, H, W, 3]`` uint8 as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "4"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def counting(frames, height=96, width=64):
    """Gray pictures that encode their number: frame n has the level 4n, its upper half a little more."""
    pictures = np.empty((frames, height, width, 3), dtype=np.uint8)
    for number in range(frames):
        pictures[number, : height // 2], pictures[number, height // 2 :] = 4 * number + 40, 4 * number
    return pictures
