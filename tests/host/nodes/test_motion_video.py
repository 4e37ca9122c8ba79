"""A VIDEO as the motion of Anchor Encode: its frames one by one, its rate and its sound."""

import io as files
import itertools
import os
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from refusals import sentence_of
from swifti2v.nodes.comfyui.video import VideoSource, source_of
from swifti2v.nodes.pipeline import motion_video, sound
from swifti2v.nodes.pipeline.motion_video import VideoFrames, read_sound

COUNT, RATE = 21, 16
SIZE = {"width": 128, "height": 96, "frames": 9}


def write(path, count=COUNT, pitch=440, pixel_format="yuv420p", size=(96, 64)):
    """A video of moving stripes with a tone."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": "5", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        voice = container.add_stream("aac", rate=48000, layout="stereo")
        wave = np.sin(2 * np.pi * pitch * np.arange(3000 * count) / 48000).astype(np.float32) / 2
        for number in range(count):
            stripes = 40000 + 20000 * np.sin(np.arange(size[0])[None, :, None] / 5 + number / 2)
            pixels = np.broadcast_to(stripes, (size[1], size[0], 3)).astype(np.uint16)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le")
            container.mux(stream.encode(picture.reformat(format=pixel_format)))
            piece = np.stack([wave[3000 * number : 3000 * (number + 1)]] * 2)
            container.mux(voice.encode(sound.audio_frame(piece, 48000, 3000 * number)))
        container.mux(stream.encode())
        container.mux(voice.encode())
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("motion") / "motion.mp4")


@pytest.fixture
def video(path):
    return InputImpl.VideoFromFile(str(path))


@pytest.fixture
def frames(path):
    opened = VideoFrames(VideoSource(str(path)))
    yield opened
    opened.close()


def pitch_of(audio):
    samples = audio["waveform"][0, 0]
    return float(torch.fft.rfft(samples).abs().argmax()) * audio["sample_rate"] / len(samples)


def test_frames_are_comfyuis(video, frames):
    whole = video.get_components().images
    assert frames.shape == tuple(whole.shape) == (COUNT, 64, 96, 3) and len(frames) == COUNT
    assert frames.rate == RATE
    assert (frames[:] - whole).abs().max() < 2 / 255  # newer ones do not round to bytes
    assert frames[:].dtype == torch.float32


@pytest.mark.parametrize("numbers", [[0, 5, 5, 20], [7], [20, 0], [3, 2, 1]])
def test_frames_may_be_asked_for_in_any_order(frames, numbers):
    whole = frames[:]
    assert torch.equal(frames[numbers], whole[numbers])
    assert torch.equal(frames[2:4], whole[2:4])
    assert not torch.equal(whole[1], whole[2])


@pytest.mark.parametrize(("start", "duration"), [(0.5, 0.5), (0.5, 0), (0.0, 0.25), (-0.5, 0), (0.5, 0.03)])
def test_a_cut_video_is_comfyuis_cut(path, start, duration):
    video = InputImpl.VideoFromFile(str(path), start_time=start, duration=duration)
    expected = video.get_components()
    with motion_video.opened_motion(video) as motion:
        assert len(motion.frames) == len(expected.images)
        assert (motion.frames[[0, len(motion.frames) - 1]] - expected.images[[0, -1]]).abs().max() < 2 / 255
        assert motion.rate == RATE
        length = motion.audio["waveform"].shape[2]
        assert abs(length - expected.audio["waveform"].shape[2]) <= 1024
        assert torch.equal(motion.audio["waveform"][..., :4800], expected.audio["waveform"][..., :4800])


@pytest.mark.parametrize("options", [{}, {"color_match": True, "fit": "pad"}])
def test_the_reference_is_that_of_the_frames(run, video, frames, streaming_vae, photo, options):
    given = {"image": photo, "vae": streaming_vae, **SIZE, **options}
    z_ref, _, fps, audio = run("SwiftI2V_AnchorEncode", motion=video, **given)
    expected = run("SwiftI2V_AnchorEncode", motion=frames[:], **given)
    assert torch.equal(z_ref["samples"], expected[0]["samples"])
    assert expected[2:] == (None, None)
    assert fps == RATE * 8 / 20  # 9 frames take the time of 21
    assert audio["sample_rate"] == 48000 and audio["waveform"].shape[1] == 2
    assert 0 <= audio["waveform"].shape[2] - 3000 * COUNT < 1024
    assert pitch_of(audio) == pytest.approx(440, abs=1)


def test_few_frames_are_in_memory_at_a_time(run, tmp_path, streaming_vae, photo, monkeypatch):
    """No more than what one piece of the encode needs, each decoded when its turn comes."""
    from swifti2v.swifti2v_core.vae.strips import StripEncoder

    order, asked = [], []
    get, front = VideoFrames.__getitem__, StripEncoder._front

    def spy_get(self, index):
        found = get(self, index)
        order.append("decode")
        asked.append(len(found))
        return found

    def spy_front(self, x, *args):
        order.append("encode")
        return front(self, x, *args)

    monkeypatch.setattr(VideoFrames, "__getitem__", spy_get)
    monkeypatch.setattr(StripEncoder, "_front", spy_front)
    long = InputImpl.VideoFromFile(str(write(tmp_path / "long.mp4", 241)))
    size = {"width": 64, "height": 32, "frames": 41}
    run("SwiftI2V_AnchorEncode", image=photo, motion=long, vae=streaming_vae, **size)
    assert asked == [4] * 10
    assert order == ["encode"] + ["decode", "encode"] * 10


def test_a_file_is_closed(run, video, vae, photo, monkeypatch):
    def opened():
        links = (f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd"))
        return [os.readlink(each) for each in links if os.path.islink(each)]

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the system does not list open files")
    run("SwiftI2V_AnchorEncode", image=photo, motion=video, vae=vae, **SIZE)
    monkeypatch.setattr(motion_video, "_as_image", lambda picture: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("SwiftI2V_AnchorEncode", image=photo, motion=video, vae=vae, **SIZE)
    assert not [each for each in opened() if each.endswith("motion.mp4")]


def test_a_video_in_memory(path):
    video = InputImpl.VideoFromFile(files.BytesIO(path.read_bytes()))
    with motion_video.opened_motion(video) as motion:
        assert isinstance(motion.frames, VideoFrames) and len(motion.frames) == COUNT
        assert pitch_of(motion.audio) == pytest.approx(440, abs=1)


def test_a_video_made_of_frames_stays_as_it_is():
    images = torch.rand(5, 16, 32, 3)
    components = Types.VideoComponents(images=images, audio=None, frame_rate=Fraction(30000, 1001))
    video = InputImpl.VideoFromComponents(components)
    assert source_of(video) is None
    with motion_video.opened_motion(video) as motion:
        assert torch.equal(motion.frames, images)
        assert motion.rate == pytest.approx(29.97, abs=1e-3) and motion.audio is None


def test_what_comfyui_changes_on_the_way_is_its_own(path, monkeypatch):
    video = InputImpl.VideoFromFile(str(path))
    monkeypatch.setattr(type(video), "get_dimensions", lambda self: (48, 64))  # as a crop would
    assert source_of(video) is None


def test_ten_bits_stay_ten_bits(tmp_path):
    fine = VideoFrames(VideoSource(str(write(tmp_path / "fine.mp4", 2, pixel_format="yuv420p10le"))))
    levels = fine[[0]].unique()
    fine.close()
    assert levels.diff().min() < 1 / 512


def test_a_phones_video_stands_upright():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    picture = SimpleNamespace(
        format=SimpleNamespace(components=[SimpleNamespace(bits=8)]),
        to_ndarray=lambda format: pixels,
        rotation=90,
    )
    image = motion_video._as_image(picture)
    assert torch.equal(image, torch.from_numpy(np.rot90(pixels).copy()).float() / 255)


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path):
    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as container:
        voice = container.add_stream("libopus", rate=48000, layout="mono")
        for number in range(10):
            piece = np.sin(np.arange(4800)[None] * 2 * np.pi / 100).astype(np.float32)
            container.mux(voice.encode(sound.audio_frame(piece, 48000, 48000 + 4800 * number)))
        container.mux(voice.encode())
    heard = read_sound(VideoSource(str(path)))["waveform"][0, 0]
    assert heard[:46000].abs().max() == 0 and heard[60000:80000].abs().mean() > 0.1


def test_a_damaged_end_repeats_the_last_frame(frames, monkeypatch):
    whole, decoded = frames[:], motion_video._decoded
    monkeypatch.setattr(motion_video, "_decoded", lambda source: first_frames(decoded(source), 16))
    assert torch.equal(frames[[0, 15, 16, 20]], whole[[0, 15, 15, 15]])


def first_frames(decoded, count):
    yield from itertools.islice(decoded, count)
    decoded.close()


def test_files_without_a_picture_are_refused(run, vae, photo, tmp_path):
    given = {"image": photo, "vae": vae, **SIZE}
    nothing = tmp_path / "nothing.mp4"
    nothing.write_bytes(b"no video at all")
    sentence = sentence_of(
        run, "SwiftI2V_AnchorEncode", motion=InputImpl.VideoFromFile(str(nothing)), **given
    )
    assert sentence.startswith("The motion video cannot be read (")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=48000, layout="mono")
        container.mux(voice.encode(sound.audio_frame(np.zeros((1, 4800), np.float32), 48000, 0)))
        container.mux(voice.encode())
    video = InputImpl.VideoFromFile(str(tmp_path / "sound.mp4"))
    assert sentence_of(run, "SwiftI2V_AnchorEncode", motion=video, **given) == (
        "The motion video cannot be read (no picture in it), but must be a file that FFmpeg decodes; save "
        "it as MP4 with H.264, for example."
    )


def test_a_batch_of_photos_has_no_video(run, video, vae, photo):
    photos = photo.repeat(2, 1, 1, 1)
    assert sentence_of(run, "SwiftI2V_AnchorEncode", image=photos, motion=video, vae=vae, **SIZE) == (
        "The photo is a batch of 2 images, but a VIDEO is the motion of one; pick one with ImageFromBatch."
    )


def test_rate_and_sound_reach_the_finished_file(run, video, vae, photo):
    z_ref, _, fps, audio = run("SwiftI2V_AnchorEncode", image=photo, motion=video, vae=vae, **SIZE)
    ((written,),) = run("SwiftI2V_DecodeToVideo", samples=z_ref, vae=vae, fps=fps, audio=audio, codec="av1")
    with av.open(written.get_stream_source()) as container:
        assert container.streams.video[0].average_rate == Fraction(32, 5)
        heard = np.concatenate([each.to_ndarray() for each in container.decode(audio=0)], axis=1)
    assert heard.shape == (2, 67500)  # 9 frames at 6.4 per second; the sound was 63000 long
    assert np.abs(heard[:, 65000:]).max() < 1e-2 < np.abs(heard[:, :60000]).max()
