"""Names of files to write: none leads out of the output folder or breaks a file system."""

import os
from pathlib import Path

import pytest
from refusals import case
from swifti2v.nodes.checks import file_names
from swifti2v.swifti2v_core.resume import saved_segments

PREFIXES = [
    case("SwiftI2V_DecodeToVideo", "filename_prefix", "output folder", filename_prefix="../../clip"),
    case(
        "SwiftI2V_DecodeToVideo", 'filename_prefix is ""', 'valid value is "SwiftI2V"', filename_prefix=""
    ),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), PREFIXES)
def test_bad_prefixes_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence


@pytest.fixture
def prefix(pack, workspace, monkeypatch):
    """Check a filename_prefix; on ComfyUI's side, ask where it would write."""
    import folder_paths

    def check(text):
        file_names.check_filename_prefix(text)
        output = Path(folder_paths.get_output_directory())
        folder, name, *_ = folder_paths.get_save_image_path(text, str(output), 32, 32)
        path = Path(folder) / f"{name}_00001_.webm.part"
        path.write_bytes(b"")  # the system takes the name
        assert path.resolve().is_relative_to(output.resolve())
        path.unlink()

    return check


@pytest.mark.parametrize(
    "text",
    [
        "clip",
        "a/b/c/clip",
        "a/../clip",
        "with space",
        "übung/映像",
        "%year%-%month%-%day%/%hour%%minute%%second%",
        "%width%x%height%",
        "%date:yyyy%",
        "a//b",
        "./clip",
        "....",
        ".hidden",
        "-rf",
        "n" * 200,
        "d/" * 200 + "clip",
        "a\\..\\..\\b",
        "~root/x",
        "$HOME/x",
        "%2e%2e/x",
    ],
)
def test_prefixes_inside_the_output_folder(prefix, text):
    prefix(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("names no file",)),
        ("a/", ("names no file",)),
        ("..", ("leaves ComfyUI's output folder",)),
        ("../x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("a/../../x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("%year%/../../x", ("leaves ComfyUI's output folder",)),
        ("/etc/x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("//server/share/x", ("leaves ComfyUI's output folder",)),
        ("../output_of_another/x", ("leaves ComfyUI's output folder",)),
        (".", ("leaves ComfyUI's output folder",)),
        ("link/x", ("leaves ComfyUI's output folder",)),
        ("link/../x", ()),
        ("file/x", ("has a file where a folder must be (file)",)),
        ("a\x00b", ("holds characters that no file name may have", 'value is "a_b"')),
        ("a\nb", ("holds characters",)),
        ("a\ud800b", ("holds characters", 'value is "a?b"')),
        ("n" * 300, ("200 bytes each", "shorten it")),
        ("ü" * 150, ("200 bytes each", "shorten it")),
        ("d/" * 2000 + "x", ("1000 together", "shorten it")),
    ],
)
def test_prefixes_that_are_refused(pack, workspace, tmp_path, text, words):
    output = workspace / "output"
    (output / "link").symlink_to(tmp_path, target_is_directory=True)
    (output / "file").write_bytes(b"")
    try:
        if not words:  # after its link, ".." leads elsewhere than in the text
            words = ("leaves ComfyUI's output folder",)
        with pytest.raises(ValueError) as error:
            file_names.check_filename_prefix(text)
    finally:
        (output / "link").unlink()
        (output / "file").unlink()
    sentence = str(error.value)
    assert sentence.startswith("filename_prefix is ") and "\n" not in sentence and len(sentence) < 300
    assert all(word in sentence for word in words)


@pytest.mark.parametrize(
    "text", ["C:\\x", "C:x", "con", "a/NUL", "aux.txt/x", "com1", "a:b", "what?", 'a"b', "a|b"]
)
def test_names_that_windows_keeps(pack, monkeypatch, text):
    monkeypatch.setattr(file_names.sys, "platform", "win32")
    with pytest.raises(ValueError, match="Windows keeps for itself; the nearest valid value is"):
        file_names.check_filename_prefix(text)
    file_names.check_filename_prefix("console/auxiliary.com")


def test_a_folder_that_may_not_be_written(pack, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="its folder is not writable; choose another one"):
        file_names.check_filename_prefix("clip")


NO_FOLDERS = (
    "../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "C:",
    "con",
    "a\x00b",
    "a\nb",
    "x" * 10**6,
    "a\ud800",
)


@pytest.mark.parametrize("name", NO_FOLDERS, ids=range(len(NO_FOLDERS)))
def test_the_name_of_a_checkpoint_is_no_path(pack, name):
    with pytest.raises(ValueError, match=r"^checkpoint is .* the nearest valid value is .*[.]$") as error:
        saved_segments.check_name(name)
    assert len(str(error.value)) < 400
