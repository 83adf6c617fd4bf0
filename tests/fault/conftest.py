from tests.fault.books import gated

__all__ = ["gated"]
