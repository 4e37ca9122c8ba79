import pytest

from swifti2v_core.reference.keyframes import parse_keyframe_times
from swifti2v_core.sigmas import parse_timesteps
from swifti2v_core.text import MAX_CHARACTERS, shortened


def test_short_text_stays():
    assert shortened("1000, 757, 522") == "1000, 757, 522"
    assert shortened("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    assert shortened("Übung 映像") == "Übung 映像"


def test_long_text_is_cut_and_control_characters_go():
    assert shortened("x" * (MAX_CHARACTERS + 1)) == "x" * MAX_CHARACTERS + "..."
    assert shortened("a\nb\x00c\u202ed\ud800e") == "a b c d e"


TEXTS = (
    "9" * 10**5,
    "," * 10**6,
    "1 " * 10**5,
    "1e308",
    "-1e999",
    "nan",
    "1\x002",
    "1\n2",
    "\ud800",
    "\u0663",
    "1_000",
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_parsers_end_in_a_sentence_of_bounded_length(text):
    for parse in (parse_timesteps, lambda text: parse_keyframe_times(text, 2, 81)):
        try:
            parse(text)
        except ValueError as error:
            assert len(str(error)) < 400 and "\n" not in str(error) and str(error).endswith(".")


def test_the_longest_list_of_timesteps():
    assert len(parse_timesteps(", ".join(str(1000 - step / 2) for step in range(1000)))) == 1000
    with pytest.raises(ValueError, match="1001 numbers, but a schedule has at most 1000 steps"):
        parse_timesteps(", ".join(str(1000 - step / 2) for step in range(1001)))
