"""Loads diffusers' pipelines from a folder or from the Hugging Face hub, and refuses incomplete ones.

diffusers and transformers are imported only when a pipeline is loaded, because they cost seconds and hundreds
of megabytes. Both fill weights that a file lacks with random or uninitialised numbers and go on; here, such a
file is an error that names the missing tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backfire.errors import BackfireError, Code, ModelError
from backfire.files import durable

TEXT = tuple(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
"""The components that embed prompts, which are freed once all prompts are embedded."""
_LIBRARIES = ("diffusers", "transformers")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_VOCABULARY = (".json", ".txt", ".model", ".jinja")
"""Suffixes of the small files of a component: configurations and vocabularies."""


@dataclass(frozen=True)
class Folder:
    """A pipeline as `save_pretrained` writes it.

    Attributes:
        name: the editor's name, for messages.
        path: the folder.
        kind: the class of the pipeline by its model_index.json.
        variant: the variant of the files, such as `fp16`; components that lack it are loaded without it.
        unused: the components that are neither fetched nor loaded.
    """

    name: str
    path: Path
    kind: str
    variant: str | None
    unused: tuple[str, ...]

    def pipeline(self, kind: str, dtype: torch.dtype, **options: Any) -> Any:
        """The pipeline on the CPU, as one of diffusers' class `kind`; `options` are those of its constructor.

        Raises:
            ModelError: a component or one of its tensors is missing.
        """
        import diffusers

        models = {
            component: load_model(
                self.name, class_named(*given), self.path / component, dtype, self._variant(component)
            )
            for component, given in self._components().items()
            if issubclass(class_named(*given), nn.Module)
        }
        pipe = getattr(diffusers, kind).from_pretrained(
            self.path,
            local_files_only=True,
            **models,
            **dict.fromkeys(self.unused),
            **options,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def digest(self) -> str:
        """The SHA-256 over the names and contents of the loaded files."""
        total = hashlib.sha256()
        for path in self._files():
            content = durable.file_sha256(path)
            total.update(f"{path.relative_to(self.path).as_posix()}:{content}\n".encode())
        return total.hexdigest()

    def _components(self) -> dict[str, tuple[str, str]]:
        """The components that are loaded, and the library and class of each; all are there."""
        index = json.loads((self.path / "model_index.json").read_text(encoding="utf-8"))
        found = {}
        for component, given in index.items():
            if component in self.unused or not isinstance(given, list) or given[0] not in _LIBRARIES:
                continue
            self._require(component, given[1])
            found[component] = given[0], given[1]
        return found

    def _require(self, component: str, kind: str) -> None:
        folder = self.path / component
        lacks = "" if any(folder.glob("*")) else component
        if component.startswith("tokenizer") and not lacks:
            if not (folder / "tokenizer_config.json").is_file():
                lacks = f"{component}/tokenizer_config.json"
            else:
                lacks = _lacking_vocabulary(folder, class_named("transformers", kind))
        if lacks:
            raise error(self.name, f"{self.path} lacks {lacks} ({kind})", "fetch the pipeline again, whole")

    def _variant(self, component: str) -> str | None:
        marked = f"*.{self.variant}*.safetensors"
        return self.variant if self.variant and any((self.path / component).glob(marked)) else None

    def _files(self) -> Iterator[Path]:
        """The files of the pipeline: the configurations, vocabularies and weights of its components."""
        yield self.path / "model_index.json"
        for component in sorted(self._components()):
            files = sorted((self.path / component).glob("*"))
            yield from (file for file in files if file.suffix in _VOCABULARY)
            weights = [file for file in files if file.suffix == ".safetensors"]
            # NAME[.VARIANT][-SHARD].safetensors; a component that lacks the variant is loaded without it.
            marked = [file for file in weights if self.variant and f".{self.variant}" in file.name]
            yield from marked or (file for file in weights if file.name.count(".") == 1)


def located(
    name: str, weights: str, kinds: Collection[str], unused: Sequence[str], variant: str | None
) -> Folder:
    """The folder of a pipeline. The network is used only for a hub name that is not yet in the hub's cache.

    Args:
        name: the editor's name, for messages.
        weights: a folder as `save_pretrained` writes it, or `owner/name` on the Hugging Face hub.
        kinds: the classes of pipelines that are taken. No others are loaded, so that no other code runs.
        unused: the components that are neither fetched nor loaded.
        variant: the variant of the files.

    Raises:
        ModelError: a library is missing, there is no such folder or hub name, or it is another pipeline.
    """
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise error(name, f"pipelines need {library}", "pip install 'backfire[diffusion]'")
    _hush()
    path = _path(name, weights, unused, variant)
    try:
        kind = json.loads((path / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as caught:
        reason = f"{path} has no readable model_index.json ({brief(caught)})"
        raise error(name, reason, "name the folder that save_pretrained wrote") from caught
    if not isinstance(kind, str) or kind not in kinds:
        expected = ", ".join(kinds)
        raise error(name, f"{path} holds a {kind}, expected one of {expected}", "name another pipeline")
    return Folder(name, path, kind, variant, tuple(unused))


@contextlib.contextmanager
def loading(folder: Folder) -> Iterator[None]:
    """Turn what the libraries raise while a pipeline is loaded into a ModelError that names the folder."""
    try:
        yield
    except (BackfireError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as caught:  # the errors of the three libraries have no common base class
        if isinstance(caught, RuntimeError) and "memory" in str(caught):
            raise  # torch's CPU allocator raises a RuntimeError
        reason = f"{folder.path} cannot be loaded as a pipeline ({brief(caught)})"
        raise error(folder.name, reason, "fetch it again, as safetensors (no pickles)") from caught


def load_model(
    name: str, kind: Any, path: Path, dtype: torch.dtype | None = None, variant: str | None = None
) -> nn.Module:
    """A model of diffusers or transformers from its own folder, on the CPU, whole.

    Raises:
        ModelError: its files lack a tensor.
    """
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "variant": variant}
    if kind.__module__.startswith("diffusers"):
        options["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    if dtype is not None:
        options["dtype"] = dtype
    model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    unset = {key for key, value in model.state_dict().items() if value.is_meta}
    missing = sorted({*info["missing_keys"], *unset})
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise error(name, f"the weights in {path} lack {missing[0]}{more}", "fetch the files again, whole")
    loaded: nn.Module = model
    return loaded


def release_text(pipe: Any) -> None:
    """Free the parts that embed prompts."""
    pipe.register_modules(**{part: None for part in TEXT if hasattr(pipe, part)})


def class_named(library: str, kind: str) -> Any:
    """A class of diffusers or transformers. Raises a ValueError where this version has none of that name."""
    found = getattr(importlib.import_module(library), kind, None)
    if not isinstance(found, type):
        raise ValueError(f"{library} has no class {kind}; a newer one may")
    return found


def _lacking_vocabulary(folder: Path, tokenizer: Any) -> str:
    """The files that a tokenizer's folder lacks, '' for none.

    Without a vocabulary, transformers 5 makes a tokenizer of a few special tokens and says nothing, so that
    every prompt gets a wrong embedding.
    """
    parts = dict(getattr(tokenizer, "vocab_files_names", {}))  # AutoTokenizer lists none
    whole = [file for key, file in parts.items() if key == "tokenizer_file"]  # stands for all of the others
    ways = filter(None, [whole, [file for file in parts.values() if file not in whole]])
    absent = [[f"{folder.name}/{file}" for file in way if not (folder / file).is_file()] for way in ways]
    return ", or in its place ".join(map(" and ".join, absent)) if all(absent) else ""


def _path(name: str, weights: str, unused: Sequence[str], variant: str | None) -> Path:
    if Path(weights).is_dir():
        return Path(weights)
    remedy = "name a folder with a model_index.json, or owner/name on the Hugging Face hub"
    if not _HUB_NAME.fullmatch(weights):
        raise error(name, f"{weights} is no folder", remedy)
    from diffusers import DiffusionPipeline

    options = {"use_safetensors": True, "variant": variant, **dict.fromkeys(unused)}
    with contextlib.suppress(Exception):  # if the cache is damaged, fetching repairs it or says why not
        return Path(DiffusionPipeline.download(weights, local_files_only=True, **options))
    try:
        return Path(DiffusionPipeline.download(weights, **options))
    except Exception as caught:  # the hub client raises errors of its HTTP libraries, too
        reason = f"{weights} is no folder, not in the hub's cache, and cannot be fetched ({brief(caught)})"
        raise error(name, reason, f"go online once, or {remedy}") from caught


def _hush() -> None:
    """Turn off the libraries' progress bars and messages, because the daemon's stderr holds JSON lines."""
    import diffusers
    import transformers
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public there

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    disable_progress_bars()


def brief(caught: BaseException) -> str:
    """An error in one line of at most 300 characters, because the libraries' messages fill pages."""
    return " ".join(f"{type(caught).__name__}: {caught}".split())[:300]


def error(name: str, reason: str, remedy: str) -> ModelError:
    """An error about the weights of the editor of that name."""
    return ModelError(Code.MODEL, f"editor {name}: {reason}; {remedy}", retryable=False)
