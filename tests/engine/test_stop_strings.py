"""Stop strings and whole characters: nothing that may not be shown is ever shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phial.engine.stop_strings import Piece, StopStrings


def run(stops: list[str], parts: list[bytes]) -> tuple[StopStrings, list[list[Piece]]]:
    """Push parts until stopped; the pieces released by each push, and by finish at the end."""
    text, released = StopStrings(stops), []
    for token, part in enumerate(parts):
        released.append(list(text.push(token, part)))
        if text.stopped:
            return text, released
    released.append(list(text.finish()))
    return text, released


def shown(released: list[list[Piece]]) -> list[str]:
    return ["".join(piece.text for piece in pieces) for pieces in released]


def test_text_without_stops_is_released_token_by_token() -> None:
    _, released = run([], [b"Hello", b" world", b"!"])
    assert shown(released) == ["Hello", " world", "!", ""]
    assert [p.entries for pieces in released for p in pieces] == [[(0, 0, None)], [(1, 5, None)], [(2, 11, None)]]


def test_a_stop_inside_one_token_cuts_it() -> None:
    text, released = run(["b"], [b"aab", b"never"])
    assert (text.text, text.stopped, shown(released)) == ("aa", True, ["aa"])


def test_a_stop_across_three_tokens_is_held_back_and_never_shown() -> None:
    text, released = run(["<|end|>"], [b"hi", b"<|", b"en", b"d|>"])
    assert shown(released) == ["hi", "", "", ""]
    assert text.stopped


def test_a_beginning_that_does_not_become_a_stop_is_shown_after_all() -> None:
    _, released = run(["<|end|>"], [b"1 <", b" 2", b" <|"])
    assert shown(released) == ["", "1 < 2", "", " <|"]


def test_the_first_in_list_order_wins_at_its_first_occurrence() -> None:
    assert run(["tates", " States"], [b"United", b" States"])[0].text == "United S"
    assert run([" States", "tates"], [b"United", b" States"])[0].text == "United"
    assert run(["b"], [b"aXbYb"])[0].text == "aX"


def test_no_other_stop_string_is_left_before_the_winner() -> None:
    assert run(["z", "ab"], [b"-abz"])[0].text == "-"


def test_a_stop_that_overlaps_itself_is_found() -> None:
    assert run(["aab"], [b"a", b"a", b"a", b"b"])[0].text == "a"


def test_half_a_character_is_never_shown() -> None:
    smile = "🙂".encode()
    _, released = run([], [b"x", smile[:1], smile[1:3], smile[3:], b"y"])
    assert shown(released) == ["x", "", "", "🙂", "y", ""]
    assert [entry[0] for entry in released[3][0].entries] == [1, 2, 3]


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    text, released = run([], [b"x", "é".encode()[:1]])
    assert (text.text, "".join(shown(released))) == ("x", "x")


def test_a_stop_hidden_by_an_invalid_byte_is_found() -> None:
    assert run(["ab"], [b"-a\xffb"])[0].text == "-"


def test_a_stop_that_completes_with_the_start_of_a_character_is_found() -> None:
    assert run(["ab"], [b"a", b"b\xf0"])[0].text == ""


parts_strategy = st.lists(st.binary(max_size=4) | st.text("ab<|é🙂", max_size=3).map(str.encode), max_size=12)
stops_strategy = st.lists(st.text("ab<|é🙂", min_size=1, max_size=4), max_size=4)


@given(stops_strategy, parts_strategy)
def test_streamed_text_equals_whole_text_and_holds_no_stop(stops: list[str], parts: list[bytes]) -> None:
    text, released = run(stops, parts)
    streamed = "".join(shown(released))
    everything = b"".join(parts).decode("utf-8", errors="ignore")
    assert streamed == text.text
    assert not any(stop in streamed for stop in stops)
    assert everything.startswith(streamed)
    assert text.stopped == any(stop in everything for stop in stops)
    if not text.stopped:
        assert streamed == everything


@given(stops_strategy, parts_strategy)
def test_what_was_shown_is_never_taken_back(stops: list[str], parts: list[bytes]) -> None:
    text, so_far = StopStrings(stops), ""
    for token, part in enumerate(parts):
        for piece in text.push(token, part):
            assert piece.start == len(so_far)
            so_far += piece.text
        assert text.text.startswith(so_far)
        if text.stopped:
            break
