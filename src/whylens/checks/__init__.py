"""Contract checks that anyone can run on a method of their own."""

from whylens.checks.maps import check_map_method
from whylens.checks.traces import check_trace_method
from whylens.checks.words import check_words_method

__all__ = ["check_map_method", "check_trace_method", "check_words_method"]
