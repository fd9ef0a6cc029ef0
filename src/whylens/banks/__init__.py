"""Concept banks: the candidate phrases, their groups, their filters, and models that write them."""

from whylens.banks.bank import ConceptBank, Dropped
from whylens.banks.generation import Plan, generate_bank, plan_generation
from whylens.banks.generation_audit import GeneratedBank
from whylens.banks.generation_endpoint import Endpoint, EndpointError
from whylens.banks.generation_limits import Cost, LimitReachedError, Limits
from whylens.banks.generation_local import LocalModel
from whylens.banks.generation_subjects import Recipe, read_class_names
from whylens.banks.given import GivenBank, load_given_bank
from whylens.banks.sources import list_banks, load_bank, read_descriptors

__all__ = [
    "ConceptBank",
    "Cost",
    "Dropped",
    "Endpoint",
    "EndpointError",
    "GeneratedBank",
    "GivenBank",
    "LimitReachedError",
    "Limits",
    "LocalModel",
    "Plan",
    "Recipe",
    "generate_bank",
    "list_banks",
    "load_bank",
    "load_given_bank",
    "plan_generation",
    "read_class_names",
    "read_descriptors",
]
