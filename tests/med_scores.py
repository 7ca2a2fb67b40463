"""Scores on which MED is worked by hand.

They are 0 and plus or minus ln 3, because sigma(ln 3) = 3/4, sigma(0) = 1/2, sigma(-ln 3) = 1/4, and
softplus(ln 3) = ln 4, softplus(0) = ln 2, softplus(-ln 3) = ln 4/3.
"""

from math import log

import torch

LN2, LN3, LN4, LN4_3 = log(2), log(3), log(4), log(4 / 3)
# Two sizes, two queries, the positive in column 0 and one negative behind it.
SCORES = torch.tensor([[[LN3, 0.0], [0.0, -LN3]], [[0.0, LN3], [LN3, 0.0]]])
FIRST = torch.zeros(2, dtype=torch.long)
SIZES = (5, 10)
