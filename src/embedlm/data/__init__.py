"""Records that models are trained and measured on."""

from embedlm.data.lines import read_lines
from embedlm.data.records import Group, Kind, Pair, Records, read_records

__all__ = ["Group", "Kind", "Pair", "Records", "read_lines", "read_records"]
