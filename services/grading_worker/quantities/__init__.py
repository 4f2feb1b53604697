"""Numbers and units as pupils write them and as readers read them."""

from .numbers import Candidate, Locale, find_numbers
from .units import UnitReading, compare_units, same_dimension

__all__ = ["Candidate", "Locale", "UnitReading", "compare_units", "find_numbers", "same_dimension"]
