from tests.fault.books import gated
from tests.fault.house import house

__all__ = ["gated", "house"]
