"""What is said of how sure scores are."""

import math

from shapray.storage.certainty import Certainty, in_words, median, percent


def test_the_group_in_the_middle_speaks_for_all():
    unknown = Certainty(0.3, math.nan, math.nan)
    found = [Certainty(0.5, 0.3, 0.4), unknown, Certainty(0.1, 0.1, 0.0)]
    assert median(found) is unknown  # not its total beside the others' parts
    assert "more than 2 permutations would tell" in in_words(unknown, 256)
    assert math.isnan(median([Certainty(math.nan, math.nan, 0.0)]).total)


def test_what_is_exact_has_no_error_of_the_sampling_whatever_the_spread():
    found = Certainty.of_squares(spread=-0.1, total=1.0, images=1.0, sampling=0.0)
    assert (found.total, found.images, found.sampling) == (math.inf, math.inf, 0.0)
    assert [percent(error) for error in (found.total, found.sampling)] == ["not seen", "0.0%"]
    assert percent(1.234) == "123.4%"


def test_what_is_worth_money_is_said():
    assert "more images lower it, more permutations would hardly" in in_words(
        Certainty(0.5, 0.49, 0.1), 256
    )
    assert "more permutations lower it" in in_words(Certainty(0.5, 0.1, 0.49), 256)
    assert "both" in in_words(Certainty(0.5, 0.3, 0.4), 256)
    assert "one image" in in_words(Certainty(math.nan, math.nan, 0.0), 1)
