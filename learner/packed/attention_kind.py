"""Choice of the learner's attention, without torch, so that it can be reported before a start."""

PACKED_SDPA = "packed_sdpa"
PACKED_FLASH = "packed_flash"
PACKED_VARLEN = "packed_varlen"
UNPACKED = "sdpa"
"""transformers' own, for passes of one episode."""
PLAIN = "eager"
"""transformers' own in plain operations: how each model's code defines its attention."""


def attention_kind(*, cuda: bool, sixteen_bit: bool, flash_attn: bool) -> str:
    """Return the name of the implementation for a model of that device and precision.

    A 16-bit model on CUDA takes the package flash-attn where it is installed, else torch's own
    flash kernel. Any other model takes SDPA per episode.
    """
    if not (cuda and sixteen_bit):
        return PACKED_SDPA
    return PACKED_FLASH if flash_attn else PACKED_VARLEN
