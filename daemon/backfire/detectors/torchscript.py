"""The detector `torchscript`: TorchScript or an exported program, run on the processor.

It fulfils the contract of `backfire.detectors.boxes`. Such a file is code; `backfire.weights.programs` says
under which conditions it is loaded.
"""

from __future__ import annotations

import numpy as np
import torch

from backfire.config import TorchScript
from backfire.detectors.boxes import BoxDetector
from backfire.detectors.networks import Floats, NetworkFailed
from backfire.errors import Code
from backfire.weights import programs


class TorchScriptDetector(BoxDetector):
    """Runs the configured network.

    Raises:
        ModelError: `Code.DETECTOR`, the file is not trusted, missing or broken, or has another digest.
    """

    def __init__(self, settings: TorchScript) -> None:
        assert settings.model is not None, "detectors.get has checked it"
        path = settings.model
        user = "detector torchscript"
        on, _ = programs.load(path, settings.sha256, settings.trust, user=user, code=Code.DETECTOR)
        forward = on(torch.device("cpu"))

        def look(batch: Floats) -> list[Floats]:
            try:
                with torch.inference_mode():
                    out = forward(torch.from_numpy(batch))
                out = out[0] if isinstance(out, list | tuple) else out
                return [np.asarray(out.float())]
            except Exception as error:  # the model is not ours and may raise anything
                raise NetworkFailed(path.name) from RuntimeError(programs.brief(error))

        super().__init__("torchscript", look, settings)
