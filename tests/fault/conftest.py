from tests.support.house import house
from tests.support.jobs import gated

__all__ = ["gated", "house"]
