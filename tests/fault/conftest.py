from tests.support.house import house
from tests.support.jobs import gated
from tests.support.notified import notified

__all__ = ["gated", "house", "notified"]
