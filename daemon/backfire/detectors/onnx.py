"""The detector `onnx`: an ONNX file that fulfils the contract of `backfire.detectors.boxes`."""

from __future__ import annotations

from backfire.config import Onnx
from backfire.detectors import networks
from backfire.detectors.boxes import BoxDetector


class OnnxDetector(BoxDetector):
    """Runs the configured network.

    Raises:
        ModelError: `Code.DETECTOR`, the file is missing or broken, or has another digest than configured.
    """

    def __init__(self, settings: Onnx) -> None:
        assert settings.model is not None, "detectors.get has checked it"
        remedy = "set regions.onnx.model and sha256, or take 'onnx' out of regions.detectors"
        look = networks.loaded(settings.model, settings.sha256, detector="onnx", remedy=remedy)
        super().__init__("onnx", look, settings)
