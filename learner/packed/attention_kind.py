"""Which attention a learner takes: a rule without torch, so that it can be told before a start."""

PACKED_SDPA = "packed_sdpa"
PACKED_FLASH = "packed_flash"
PACKED_VARLEN = "packed_varlen"


def attention_kind(*, cuda: bool, sixteen_bit: bool, flash_attn: bool) -> str:
    """Return the name of the implementation for a model of that device and precision.

    A 16-bit model on CUDA takes package flash-attn where it is installed, else torch's own flash
    kernel, which needs nothing installed; all else SDPA per episode.
    """
    if not (cuda and sixteen_bit):
        return PACKED_SDPA
    return PACKED_FLASH if flash_attn else PACKED_VARLEN
