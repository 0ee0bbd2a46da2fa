"""The common prefix of two sequences, whatever their types are."""

import pytest

from logo_local.prefix import common_prefix


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ([], [], 0),
        ([1, 2], [1, 2], 2),
        ([1, 2], [1, 3], 1),
        ([2], [1, 3], 0),
        ([1, 2], [1, 2, 3], 2),
        ((1, 2), [1, 2], 2),
        ((1, 2), [1, 2, 3], 2),
        ([1, 2, 3], (1, 2), 2),
        ((1, 2), [1, 3], 1),
    ],
)
def test_common_prefix(one, other, length):
    assert common_prefix(one, other) == length
