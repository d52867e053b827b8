"""Attribution rows by their columns."""

from __future__ import annotations

import pytest

from gradellm.models import Attribution


def test_scores_stand_for_all_columns_or_for_the_named_ones() -> None:
    assert Attribution(0, (0.5, 0.0), (), 5, None).by_column() == {0: 0.5, 1: 0.0}
    assert Attribution(0, (-3.0, 1.0), (4, 0), 5, None).by_column() == {4: -3.0, 0: 1.0}
    assert Attribution(0, (), (), 5, None).by_column() == {}


def test_another_number_of_columns_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        Attribution(0, (1.0, 2.0), (4,), 5, None).by_column()
