"""SVD's layers for long clips, in chunks: the same numbers in a fraction of the memory.

Little in the networks mixes frames, and what does mixes few positions. So everything spatial is worked through some
frames at a time, everything temporal some positions at a time, and a layer writes its output over the map that it no
longer needs. Normalisations over a whole clip keep their statistics: these are gathered chunk by chunk first.
"""

from . import differentiable
from .decoder import decode
from .norms import normalised
from .products import by_convolutions
from .res_block import res_block
from .transformer import leads_past_others, transformer
from .winograd import convolved
from .work import Affine, Parked, Source, Upsampled, Work, is_led, is_whole, stand_in

__all__ = [
    "Affine",
    "Parked",
    "Source",
    "Upsampled",
    "Work",
    "by_convolutions",
    "convolved",
    "decode",
    "differentiable",
    "is_led",
    "is_whole",
    "leads_past_others",
    "normalised",
    "res_block",
    "stand_in",
    "transformer",
]
