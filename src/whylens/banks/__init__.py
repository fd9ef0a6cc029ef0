"""Concept banks: the candidate phrases, their groups, their filters."""

from whylens.banks.bank import ConceptBank, Dropped
from whylens.banks.sources import list_banks, load_bank, read_descriptors

__all__ = ["ConceptBank", "Dropped", "list_banks", "load_bank", "read_descriptors"]
