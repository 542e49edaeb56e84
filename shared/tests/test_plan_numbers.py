"""What every plan asks of its numbers."""

import pytest
from omegaconf import OmegaConf

from shared import InputError
from shared.plan import check_numbers


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"utilisation": 0}, r"utilisation=0: give a fraction of the peak in \(0, 1\]"),
        ({"utilisation": 1.5}, r"utilisation=1\.5: give a fraction"),
        ({"utilisation": "half"}, "utilisation=half: give a fraction"),
        ({"utilisation": True}, "utilisation=True: give a fraction"),
        ({"gpus": 0}, "gpus=0: give a whole number of at least 1"),
        ({"gpus": 1.5}, r"gpus=1\.5: give a whole number"),
        ({"gpus": "two"}, "gpus=two: give a whole number"),
    ],
)
def test_numbers_out_of_range_and_words_are_refused(number, message):
    cfg = OmegaConf.create({"utilisation": 0.4, "gpus": 2})
    check_numbers(cfg, fractions=("utilisation",), counts=("gpus",))
    with pytest.raises(InputError, match=message):
        check_numbers(OmegaConf.merge(cfg, number), fractions=("utilisation",), counts=("gpus",))
