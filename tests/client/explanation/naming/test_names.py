"""What counts as a name of a question, and equal names in other forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.explanation.naming.names import names_of, stems


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("What colour is Leo's box?", ["Leo"]),
        ("What colour is Leo's box? Answer in English, please.", ["Leo"]),  # an instruction asks nothing
        ("Tell Peter what the X200 costs.", ["Peter", "X200"]),  # without a question, all
        ("Question: Where is the key of O'Brien?", ["Brien"]),
        ("Did I ask what happened in 2019, or list 3 things?", ["2019"]),
        ("WHAT IS THE PRICE OF 2019?", ["2019"]),  # capitals alone tell nothing
        ('Was it "Leo"? Or was it he?', ["Leo"]),
        ("Welche Farbe hat Annas Kiste?", ["Farbe", "Annas", "Kiste"]),
        ("iPhone15的价格是多少？", ["iPhone15"]),
        ("请问Kate住在哪里?", ["Kate"]),
        ("Note: Where does it live, and where Leo?", ["Leo"]),
        ("Где живёт Анна?", ["Анна"]),
        ("价格是多少?", []),
        ("What is the soup?", []),
        ("", []),
    ],
)
def test_names_of_a_question(text: str, names: list[str]) -> None:
    found = names_of(text)
    assert [name.text for name in found] == names
    assert [text[name.start : name.end] for name in found] == names


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Leo", "leo", True),
        ("Leo", "Leon", True),
        ("Anna", "Annas", True),
        ("Анна", "Анну", True),
        ("Al", "Ali", False),
        ("2019", "2018", False),
        ("Kate", "Katharine", False),
        ("Iris", "Ireland", False),
    ],
)
def test_names_in_other_forms(a: str, b: str, same: bool) -> None:
    assert (not stems(a).isdisjoint(stems(b))) is same


WORDS = st.text(alphabet="ab", min_size=1, max_size=7)


@given(WORDS, WORDS)
def test_the_same_name_differs_in_its_ending_alone(a: str, b: str) -> None:
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    expected = a == b or common >= max(3, len(a) - 2, len(b) - 2)
    assert (not stems(a).isdisjoint(stems(b))) is expected


@pytest.mark.parametrize("text", ["ab " * 30_000, "Ab" + "-" * 90_000 + "+cd", "?" * 90_000, "? a" * 30_000 + "?"])
def test_long_texts_take_linear_time(text: str) -> None:
    assert len(names_of(text)) <= len(text)
