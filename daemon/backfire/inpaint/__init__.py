"""Editors: the inpainting models that the optimiser differentiates through and that edits are replayed with.

There are two sorts: the built-in ones, whose weights ship inside the package, and those the configuration
declares (`editors: {NAME: {kind, weights, ...options}}`). To add a kind: a file with a class that
has the `Editor` protocol (deriving from `ModelEditor` saves the padding and compositing) and a
classmethod `load(name, path, **options)`, and one line in `KINDS`; the contract tests find it
there. Importing this package loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire import weights
from backfire.config import DeclaredEditor, Settings
from backfire.errors import Code, ConfigError, ModelError, require
from backfire.registry import Entry, Registry

if TYPE_CHECKING:
    import torch

    from backfire.inpaint.base import Editor


@dataclass(frozen=True)
class Kind(Entry):
    """How editors of one kind are loaded; the class has a classmethod `load(name, path, **options)`.

    Attributes:
        options: keys the configuration may give besides `kind` and `weights`.
        files: how many weights may be listed; `load` then gets a tuple of paths.
        also: kinds of the catalogue whose weights it takes besides its own.
        hub: `weights` may also be a hub name, which reaches `load` as it stands.
        capabilities: what its editors offer besides `inpaint`, see `inpaint.base`.
        casts: whether `dtype` is an option that sets `ModelEditor.arithmetic`.
    """

    options: tuple[str, ...] = ()
    files: int = 1
    also: tuple[str, ...] = ()
    hub: bool = False
    capabilities: tuple[str, ...] = ()
    casts: bool = False

    @property
    def known(self) -> tuple[str, ...]:
        """All keys that a declaration may have."""
        return "kind", "weights", *self.options, *(["dtype"] if self.casts else [])

    def load(self, name: str, paths: tuple[Path, ...], options: dict[str, Any]) -> Editor:
        options, arithmetic = dict(options), None
        if self.casts and "dtype" in options:
            from backfire.inpaint.hardware import DTYPES  # brings torch

            arithmetic = DTYPES[options.pop("dtype")]
        editor: Any = self.resolve().load(name, paths[0] if self.files == 1 else paths, **options)
        if arithmetic is not None:
            editor.arithmetic = arithmetic
        loaded: Editor = editor
        return loaded


ARITHMETIC = ("float32", "bfloat16")
"""What `dtype` may be where it sets the arithmetic alone. In float16 a MAT of random weights gave no numbers,
and 87 % of a LaMa's gradients were zero."""

KINDS = Registry(
    "kind",
    {
        "lama": Kind("backfire.inpaint.lama:LamaEditor", casts=True),
        "mat": Kind("backfire.inpaint.mat:MatEditor", casts=True),
        "diffusion": Kind(
            "backfire.inpaint.diffusion:DiffusionEditor",
            ("prompts", "negative", "steps", "guidance", "dtype", "mask_blur", "variant"),
            hub=True,
            capabilities=("encode", "first_step"),
        ),
        "torchscript": Kind("backfire.inpaint.scripted:ScriptedEditor", ("sha256", "trust", "multiple")),
        "latent": Kind(
            "backfire.inpaint.encoders:EncoderEditor", files=2, capabilities=("encode",), casts=True
        ),
        "inpainter": Kind(
            "backfire.inpaint.encoders:PairInpainter",
            files=3,
            also=("latent",),
            capabilities=("encode",),
            casts=True,
        ),
    },
)


@dataclass(frozen=True)
class BuiltIn(Entry):
    """An editor whose weights ship inside the package; the class has a classmethod `from_file(name, path)`.

    Attributes:
        name: as in the configuration; its weights are `NAME.safetensors`.
        family, parameters: what it is and how large, for people.
        edit_cpu_s: seconds that an edit takes on a CPU, see `weights.Model`.
        capabilities: as in `Kind`.
    """

    name: str
    family: str
    parameters: str
    edit_cpu_s: float
    capabilities: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The weights."""
        return weights.INSIDE / f"{self.name}.safetensors"

    def load(self) -> Editor:
        editor: Editor = self.resolve().from_file(self.name, self.file)
        return editor


BUILT_IN = Registry(
    "editor",
    {
        "flux2-mini": BuiltIn(
            "backfire.inpaint.encoders:PairInpainter",
            "flux2-mini",
            "latent inpainting on FLUX.2's latents, one step, ours",
            "4.1 M",
            0.6,
            ("encode",),
        ),
        "latent-mini": BuiltIn(
            "backfire.inpaint.latent:ShiftMapEditor",
            "latent-mini",
            "latent inpainting, one step, ours",
            "4.9 M",
            0.8,
            ("encode",),
        ),
        "ldm-mini": BuiltIn(
            "backfire.inpaint.ldm:LdmEditor",
            "ldm-mini",
            "latent diffusion, 8 steps, ours",
            "4.8 M",
            1.8,
            ("encode", "first_step"),
        ),
    },
)
NAMES = tuple(BUILT_IN)
"""The built-in editors."""

_loaded: dict[tuple[str, str, str], Editor] = {}


def get(name: str, device: torch.device | str = "cpu", settings: Settings | None = None) -> Editor:
    """The editor of that name on a device, loaded once per process.

    Args:
        name: a built-in one, or one that `settings.editors` declares.
        device: where its model lies.
        settings: None knows the built-in ones only.

    Raises:
        ConfigError: no editor of that name, or a declaration that cannot be; see `require_known`.
        ModelError: its weights are missing, damaged or of another kind.
    """
    declared = settings.editors if settings else {}
    require(name, (*NAMES, *declared), "editor")
    said = f"{declared[name]!r} {settings.models.folder}" if settings and name in declared else ""
    key = name, str(device), said
    if key not in _loaded:
        if settings and name in declared:
            _check(name, declared[name])
            editor = _declared(name, declared[name], settings.models.folder)
        else:
            editor = BUILT_IN[name].load()
        editor.to(device)
        _loaded[key] = editor
    return _loaded[key]


def capabilities(name: str, settings: Settings) -> tuple[str, ...]:
    """What the editor of that name offers: `inpaint`, and more where its kind has it. Loads no weights."""
    entry = BUILT_IN[name] if name in BUILT_IN else KINDS[settings.editors[name].kind]
    return "inpaint", *entry.capabilities


def require_known(settings: Settings) -> None:
    """Check everything the configuration says of editors that needs no weights to be read.

    Raises:
        ConfigError: an unknown surrogate, held-out editor, kind or option (the nearest is named), a
            declaration under a built-in name, too many weights.
    """
    for name, declared in settings.editors.items():
        _check(name, declared)
    for setting, names in (
        ("protect.surrogates", settings.protect.surrogates),
        ("verify.held_out", settings.verify.held_out),
    ):
        for name in names:
            require(name, (*NAMES, *settings.editors), setting)


def _check(name: str, declared: DeclaredEditor) -> None:
    subject = f"editors.{name}"
    if name in NAMES:
        raise ConfigError(f"{subject}: {name} is built in; choose another name")
    kind = KINDS.require(declared.kind, f"{subject}.kind")
    for option in declared.options:
        require(option, kind.known, f"{subject}: option")
    if kind.casts and "dtype" in declared.options:
        require(str(declared.options["dtype"]), ARITHMETIC, f"{subject}.dtype")
    if len(declared.weights) > kind.files:
        wrong = f"got {len(declared.weights)}, kind {declared.kind} takes at most {kind.files}"
        raise ConfigError(f"{subject}.weights: {wrong}; list fewer")
    for wanted in declared.weights:
        model = weights.catalogue().get(wanted)
        if model is not None and model.kind not in (declared.kind, *kind.also):
            wrong = f"got {declared.kind}, but {wanted} is of kind {model.kind}"
            raise ConfigError(f"{subject}.kind: {wrong}; say kind: {model.kind}")


def _declared(name: str, declared: DeclaredEditor, folder: Path) -> Editor:
    kind = KINDS[declared.kind]
    paths = []
    for wanted in declared.weights:
        known = wanted in weights.catalogue()
        if not known and not kind.hub and not Path(wanted).is_absolute():
            # The configuration made every path absolute that is there.
            names = ", ".join(weights.catalogue())
            message = f"editor {name}: weights {wanted}: no such file, nor a catalogue name ({names})"
            raise ModelError(Code.MODEL, message, retryable=False)
        paths.append(weights.located(wanted, folder) if known else Path(wanted))
    return kind.load(name, tuple(paths), declared.options)
