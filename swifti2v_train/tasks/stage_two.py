"""The task of Stage II: denoise windows, cut as the nodes cut them.

One sample is one segment of one clip: ``[anchor | neighbors | noisy]`` at its true positions (`segments`).
Clean frames have timestep 0, and their reference channels hold their own latent. The noisy frames are mixed
with noise, ``(1 - s) * truth + s * noise``, at a shifted sigma. The network predicts ``noise - truth``
(rectified flow), and the loss covers the noisy frames only.

Four settings make the network robust:

- *reference dropout*: the noisy frames' reference channels are zero, as `reference_strength.drop_reference`
  makes them when the nodes' reference strength is below 1;
- *anchor dropout*: the window lacks latent frame 0 and is one frame shorter;
- *noisy neighbors*: neighbors are mixed with noise at a small sigma, but keep timestep 0;
- *generated neighbors* (rollout): the network itself generates the segments before the trained one from the
  reference, as in inference, and their frames are the neighbors. The target is still the truth.

Whether a window is the clip's first, has an anchor and has generated neighbors is drawn once per step, so
that all samples of a step have one shape and all processes run the network equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swifti2v_core.sigmas import shift_sigma
from swifti2v_core.stage_two.segment_loop import take_window
from swifti2v_core.stage_two.segments import Segment, plan_segments, true_positions

from ..config import StageTwo
from ..data.dataset import Dataset
from ..networks.sampling import generate_segments, window_velocity
from ..random_draws import generator, integer, uniform

SEARCHED_STEPS = 1000
"""Number of steps among which `WindowTask.hardest_step` searches."""


@dataclass(frozen=True)
class StepPlan:
    """The draws that all samples of a step share.

    Attributes
    ----------
    first
        Whether the windows are those of the clips' first segments, which have no neighbors.
    anchor
        Whether the windows have an anchor.
    rollout
        Number of segments before the trained one that the network generates.
    """

    first: bool
    anchor: bool
    rollout: int


@dataclass(frozen=True)
class Sample:
    """One window.

    Attributes
    ----------
    clip
        Number of the clip in the dataset.
    segment
        The segment, without its anchor if dropped.
    window, references
        ``[48, W, h, w]``: truth, with clean frames as the network sees them, and ``z_ref``.
    noise
        ``[48, W, h, w]``.
    sigma
        Noise level of the noisy frames.
    dropped
        Whether the noisy frames have no reference.
    text
        ``[L, text_dim]``.
    """

    clip: int
    segment: Segment
    window: Tensor
    references: Tensor
    noise: Tensor
    sigma: Tensor
    dropped: bool
    text: Tensor


class WindowSamples:
    """Draws samples, each from the seed, the step and its number in the batch alone.

    Parameters
    ----------
    dataset
        The prepared clips.
    settings
        See `config.StageTwo`.
    text_dim
        Width of the network's text embeddings.

    Raises
    ------
    ValueError
        If the clips are too short, or one forward pass would mix windows of several shapes.
    """

    def __init__(self, dataset: Dataset, settings: StageTwo, text_dim: int) -> None:
        self.dataset, self.settings, self.text_dim = dataset, settings, text_dim
        self.plans = [
            plan_segments(clip.latent_frames, settings.segment_frames, settings.neighbors)
            for clip in dataset.clips
        ]
        self._check()

    def _check(self) -> None:
        settings, most = self.settings, max(len(plan) for plan in self.plans)
        if settings.rollout_share and most <= settings.rollout_segments:
            raise ValueError(
                f"rollout_segments is {settings.rollout_segments}, but the longest clip has {most} "
                "segments, one of which is trained; prepare longer clips, or set rollout_share to 0."
            )
        pairs = list(zip(self.dataset.clips, self.plans, strict=True))
        first = {(clip.width, clip.height, len(plan[0].window)) for clip, plan in pairs}
        later = {(clip.width, clip.height, len(cut.window)) for clip, plan in pairs for cut in plan[1:]}
        if settings.micro_batch > 1 and max(len(first), len(later)) > 1:
            raise ValueError(
                f"micro_batch is {settings.micro_batch}, but the windows of the clips have several "
                "sizes or lengths, which do not fit in one forward pass; the nearest valid value is 1."
            )

    def plan(self, step: int) -> StepPlan:
        """Return the draws that the samples of a step share."""
        rng, settings = generator(self.settings.seed, step, "plan"), self.settings
        segments = sum(len(plan) for plan in self.plans)
        rolled = uniform(rng) < settings.rollout_share
        only_first = all(len(plan) == 1 for plan in self.plans)
        first = uniform(rng) < len(self.plans) / segments or only_first
        anchor = uniform(rng) >= settings.anchor_dropout
        rollout = settings.rollout_segments if rolled else 0
        return StepPlan(first and not rolled, anchor, rollout)

    def sample(self, network: Any, step: int, number: int, device: torch.device) -> Sample:
        """Draw one sample.

        Parameters
        ----------
        network
            Generates the neighbors if the step has a rollout.
        step, number
            Step of the training, and number of the sample in its batch.
        device
            Device of the result; draws are made on the CPU.
        """
        settings, plan = self.settings, self.plan(step)
        rng = generator(settings.seed, step, number)
        clip, segment = self._choose(plan, rng)
        variant = integer(rng, 0, len(self.dataset.clips[clip].sigmas))
        dropped = uniform(rng) < settings.reference_dropout
        sigma = shift_sigma(torch.tensor(uniform(rng), dtype=torch.float64), settings.shift).float()
        neighbor_sigma = uniform(rng, 0, settings.neighbor_noise)

        truth = self.dataset.latents(clip)[None].to(device)
        references = self.dataset.reference(clip, variant)[None].to(device)
        text = self.dataset.text(clip, self.text_dim).to(device)
        window = take_window(truth, segment)
        noise = torch.randn(window.shape, generator=rng).to(device)
        if plan.rollout:
            rollout_noise = torch.randn(truth.shape, generator=rng).to(device)
            generated = generate_segments(
                network, truth, references, text[None], rollout_noise, self.plans[clip][: segment.index],
                start=segment.index - plan.rollout, steps=settings.rollout_steps, shift=settings.shift,
            )  # fmt: skip
            window[:, :, : segment.clean] = take_window(generated, segment)[:, :, : segment.clean]
        # Reuse the noise of the clean frames, which no target depends on.
        near = slice(1, segment.clean)
        window[:, :, near] = (1 - neighbor_sigma) * window[:, :, near] + neighbor_sigma * noise[:, :, near]
        references = take_window(references, segment)
        if not plan.anchor:
            segment = without_anchor(segment)
            window, references, noise = (part[:, :, 1:] for part in (window, references, noise))
        return Sample(clip, segment, window[0], references[0], noise[0], sigma.to(device), dropped, text)

    def _choose(self, plan: StepPlan, rng: torch.Generator) -> tuple[int, Segment]:
        """Draw a clip with enough segments for the step, and one of its segments."""
        least = 1 if plan.first else max(2, plan.rollout + 1)
        numbers = [index for index, cut in enumerate(self.plans) if len(cut) >= least]
        clip = numbers[integer(rng, 0, len(numbers))]
        segments = self.plans[clip]
        return clip, segments[0 if plan.first else integer(rng, least - 1, len(segments))]


def without_anchor(segment: Segment) -> Segment:
    """Return a segment whose window lacks the anchor."""
    return replace(segment, window=segment.window[1:], clean=segment.clean - 1, times=segment.times[1:])


def window_losses(network: Any, samples: Sequence[Sample]) -> Tensor:
    """Return the losses ``[B]``: mean squared error of the noisy frames' velocity."""
    window, references, noise, sigmas = (
        torch.stack([getattr(sample, name) for sample in samples])
        for name in ("window", "references", "noise", "sigma")
    )
    clean = [sample.segment.clean for sample in samples]
    mixed = window.clone()
    for number, frames in enumerate(clean):
        truth, sigma = window[number, :, frames:], sigmas[number]
        mixed[number, :, frames:] = (1 - sigma) * truth + sigma * noise[number, :, frames:]
    velocity = window_velocity(
        network,
        mixed,
        references,
        sigmas,
        [true_positions(sample.segment) for sample in samples],
        clean,
        torch.stack([sample.text for sample in samples]),
        [sample.dropped for sample in samples],
    )
    error = (velocity.float() - (noise - window)) ** 2
    return torch.stack([error[number, :, frames:].mean() for number, frames in enumerate(clean)])


class WindowTask:
    """Stage II's `trainer.Task`.

    Parameters
    ----------
    samples
        Source of the windows.
    """

    def __init__(self, samples: WindowSamples) -> None:
        self.samples = samples

    def hardest_step(self) -> int:
        """Return a step with a rollout if there is one, preferably with neighbors and an anchor."""
        plans = ((step, self.samples.plan(step)) for step in range(SEARCHED_STEPS))
        return max(plans, key=lambda pair: (pair[1].rollout, not pair[1].first, pair[1].anchor))[0]

    def losses(self, network: Any, step: int, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return the losses of a step's samples, ``[len(numbers)]``."""
        return window_losses(network, [self.samples.sample(network, step, n, device) for n in numbers])

    @torch.no_grad()
    def sheet(self, network: Any, device: torch.device) -> list[Tensor]:
        """Return the contact sheet's rows ``[48, T, h, w]``: truth, reference, generated."""
        dataset, settings, clip = self.samples.dataset, self.samples.settings, 0
        truth = dataset.latents(clip)[None].to(device)
        references = dataset.reference(clip, 0)[None].to(device)
        text = dataset.text(clip, self.samples.text_dim)[None].to(device)
        noise = torch.randn(truth.shape, generator=generator(settings.seed, "sheet")).to(device)
        segments = self.samples.plans[clip][:2]
        made = generate_segments(
            network,
            truth,
            references,
            text,
            noise,
            segments,
            steps=settings.rollout_steps,
            shift=settings.shift,
        )
        count = segments[-1].noisy[-1] + 1
        return [latents[0, :, :count] for latents in (truth, references, made)]
