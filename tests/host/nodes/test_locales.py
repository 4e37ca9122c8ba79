"""Texts of the nodes in other languages."""

import re

import pytest
from locale_files import LANGUAGES, LOCALES, english, read, write

SAME_EVERYWHERE = re.compile(
    r"`[^`]+`|\b\d+(?:\.\d+)?x\d+\b|\bWan2\.[12][\w-]*|\bA14B\b|\bTI2V-5B\b|\bz_ref\b"
)
"""What a translation keeps as it is: sizes, names of weights and of our own parts."""


@pytest.fixture(scope="module")
def source(pack):
    return english(pack.nodes)


def paths(texts, above=()):
    """Yield the path and the text of every entry."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from paths(value, (*above, key))
        else:
            yield (*above, key), value


def test_english_is_that_of_the_schemas(source, request):
    """Run with --write-locales after a change of a text, and translate it."""
    if request.config.getoption("--write-locales"):
        write("en", source)
    assert read("en") == source


def test_every_language_is_there():
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(("en", *LANGUAGES))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text(source, language):
    theirs = dict(paths(read(language)))
    ours = dict(paths(source))
    assert theirs.keys() == ours.keys()
    assert [path for path, text in ours.items() if (text is None) != (theirs[path] is None)] == []
    assert [path for path, text in theirs.items() if text is not None and not text.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_sizes_are_not_translated(source, language):
    theirs = dict(paths(read(language)))
    lost = [
        (path, found)
        for path, text in paths(source)
        for found in SAME_EVERYWHERE.findall(text or "")
        if found not in (theirs[path] or "")
    ]
    assert lost == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_is_one(source, language):
    """No tooltip or description is left in English."""
    theirs = dict(paths(read(language)))
    kept = [
        path
        for path, text in paths(source)
        if path[-1] in ("tooltip", "description") and text and theirs[path] == text
    ]
    assert kept == []
