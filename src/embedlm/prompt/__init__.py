"""Templates as segments, and their rendering to token ids."""

from embedlm.prompt.template import Piece, check_prompt, parse_template

__all__ = ["Piece", "check_prompt", "parse_template"]
