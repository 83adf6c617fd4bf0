from tests.support.page import desk, serving

__all__ = ["desk", "serving"]
