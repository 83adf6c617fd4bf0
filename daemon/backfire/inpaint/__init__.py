"""Editors: the inpainting models that the optimiser differentiates through and that edits are replayed with.

There are two sorts: the built-in ones, whose weights ship inside the package, and those the configuration
declares (`editors: {NAME: {kind, weights, ...options}}`). To add a kind: a file with a class that
has the `Editor` protocol (deriving from `ModelEditor` saves the padding and compositing) and a
classmethod `load(name, path)`, and one line in `KINDS`; the contract tests find it there. If it has options,
a dataclass in `options` names, documents and checks them, and `load` gets that object as well. Importing this
package loads no torch.

It is one long module because it alone knows both sorts: what a name stands for, whether its weights are
there, and which files they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire import weights
from backfire.config import DeclaredEditor, Settings
from backfire.config.renamed import EDITORS
from backfire.errors import Code, ConfigError, ModelError, require
from backfire.inpaint.options import DiffusionOptions, FlowOptions, Options, ScriptedOptions
from backfire.registry import Entry, Registry
from backfire.types import Family

if TYPE_CHECKING:
    import torch

    from backfire.inpaint.base import Editor


@dataclass(frozen=True)
class Kind(Entry):
    """How editors of one kind are loaded; the class has a classmethod `load(name, path)`, or
    `load(name, path, options)` where the kind has options.

    Attributes:
        options: what the configuration may give besides `kind` and `weights`: its fields; None for nothing.
        files: how many weights may be listed; `load` then gets a tuple of paths.
        also: kinds of the catalogue whose weights it takes besides its own.
        hub: `weights` may also be a hub name, which reaches `load` as it stands.
        capabilities: what its editors offer besides `inpaint`, see `inpaint.base`.
        stands_for: the family of editors that decides in which tools it is replayed.
        casts: whether `dtype` is an option that sets `ModelEditor.arithmetic`.
    """

    options: type[Options] | None = None
    files: int = 1
    also: tuple[str, ...] = ()
    hub: bool = False
    capabilities: tuple[str, ...] = ()
    casts: bool = False
    stands_for: Family = Family.LATENT

    @property
    def known(self) -> tuple[str, ...]:
        """All keys that a declaration may have."""
        own = [field.name for field in fields(self.options)] if self.options else []
        return "kind", "weights", "start", *own, *(["dtype"] if self.casts else [])

    def checked(self, given: Mapping[str, Any]) -> Options | None:
        """The options of a declaration, all of which are known; None where the kind has none.

        Raises:
            ConfigError: a value is impossible; the message begins with the option's name.
        """
        if self.casts and "dtype" in given:
            require(str(given["dtype"]), ARITHMETIC, "dtype")
        return self.options(**given) if self.options else None

    def load(self, name: str, paths: tuple[Path, ...], given: Mapping[str, Any]) -> Editor:
        """The editor of that name, with the options that its declaration gives."""
        options = self.checked(given)
        path = paths[0] if self.files == 1 else paths
        editor: Any = self.resolve().load(name, path, *([options] if options else []))
        if self.casts and "dtype" in given:
            from backfire.inpaint.hardware import DTYPES  # brings torch

            editor.arithmetic = DTYPES[given["dtype"]]
        loaded: Editor = editor
        return loaded


ARITHMETIC = ("float32", "bfloat16")
"""What `dtype` may be where it sets the arithmetic alone. In float16 a MAT of random weights gave no numbers,
and 87 % of a LaMa's gradients were zero."""

KINDS = Registry(
    "kind",
    {
        "lama": Kind("backfire.inpaint.lama:LamaEditor", casts=True, stands_for=Family.ERASE),
        "mat": Kind("backfire.inpaint.mat:MatEditor", casts=True, stands_for=Family.ERASE),
        "diffusion": Kind(
            "backfire.inpaint.diffusion:DiffusionEditor",
            DiffusionOptions,
            hub=True,
            capabilities=("encode", "first_step"),
            stands_for=Family.DIFFUSION,
        ),
        "flow": Kind(
            "backfire.inpaint.flow:FlowEditor",
            FlowOptions,
            hub=True,
            capabilities=("encode", "first_step", "attention_entropy"),
            stands_for=Family.FLOW,
        ),
        "torchscript": Kind(
            "backfire.inpaint.scripted:ScriptedEditor",
            ScriptedOptions,
            stands_for=Family.ERASE,
        ),
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
        capabilities, stands_for: as in `Kind`.
    """

    name: str
    family: str
    parameters: str
    edit_cpu_s: float
    capabilities: tuple[str, ...]
    stands_for: Family = Family.LATENT

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
        "flux2-micro": BuiltIn(
            "backfire.inpaint.encoders:PairInpainter",
            "flux2-micro",
            "latent inpainting on FLUX.2's latents, a smaller student, ours",
            "1.0 M + 2.3 M",
            0.4,
            ("encode",),
        ),
        "ldm-mini": BuiltIn(
            "backfire.inpaint.ldm:LdmEditor",
            "ldm-mini",
            "latent diffusion, 8 steps, ours",
            "4.8 M",
            1.8,
            ("encode", "first_step"),
            Family.DIFFUSION,
        ),
    },
)
NAMES = tuple(BUILT_IN)
"""The built-in editors."""
DEFAULT = NAMES[0]
"""The one with which `protect.surrogates: auto` begins."""

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
    _require(name, known(settings) if settings else NAMES, "editor")
    declared = declaration(name, settings) if settings else None
    said = f"{declared!r} {settings.models.folder}" if settings and declared else ""
    key = name, str(device), said
    if key not in _loaded:
        if settings and declared:
            _check(name, declared)
            editor = _declared(name, declared, settings.models.folder)
        else:
            editor = BUILT_IN[name].load()
        editor.to(device)
        _loaded[key] = editor
    return _loaded[key]


def capabilities(name: str, settings: Settings) -> tuple[str, ...]:
    """What the editor of that name offers: `inpaint`, and more where its kind has it. Loads no weights."""
    return "inpaint", *_entry(name, settings).capabilities


def family(name: str, settings: Settings) -> Family:
    """The family of editors that the one of that name stands for."""
    return _entry(name, settings).stands_for


def _entry(name: str, settings: Settings) -> BuiltIn | Kind:
    declared = declaration(name, settings)
    return BUILT_IN[name] if declared is None else KINDS[declared.kind]


def known(settings: Settings) -> tuple[str, ...]:
    """The names of all editors: built in, declared, and of the catalogue."""
    return tuple(dict.fromkeys((*NAMES, *settings.editors, *weights.catalogue())))


def declaration(name: str, settings: Settings) -> DeclaredEditor | None:
    """What the configuration says of an editor; a name of the catalogue stands for its own weights.

    Returns:
        None for a built-in one.
    """
    model = weights.catalogue().get(name)
    if name in settings.editors or model is None:
        return settings.editors.get(name)
    return DeclaredEditor(kind=model.kind, weights=(name,))


def present(settings: Settings) -> tuple[str, ...]:
    """The default editor and every other one, declared or of the catalogue, whose weights are there.

    Weights of the catalogue that a declared editor uses make no further one. None of `verify.held_out` is
    among them. Opens no weights.

    Raises:
        ConfigError: whether weights are there cannot be told, because a folder may not be looked into.
    """
    folder = settings.models.folder
    used = {wanted for one in settings.editors.values() for wanted in one.weights}
    names = [*settings.editors, *(name for name in weights.catalogue() if name not in used)]
    there = (name for name in dict.fromkeys(names) if _is_there(declaration(name, settings), folder))
    held_out = settings.verify.held_out
    return tuple(name for name in (DEFAULT, *there) if name not in held_out)


def files_of(name: str, settings: Settings) -> list[Path]:
    """The files that make an editor what it is, as far as they are named by paths; opens none of them.

    A model of the hub that is named `owner/name` has none.
    """
    declared, folder = declaration(name, settings), settings.models.folder
    if declared is None:
        return sorted(weights.INSIDE.glob("*.safetensors"))  # they share parts
    files = [declared.start] if declared.start is not None else []
    for wanted in declared.weights:
        if (model := weights.catalogue().get(wanted)) is not None:
            files += [folder / wanted / file.path for file in model.files]
        elif (path := Path(wanted)).is_dir():
            files += filter(Path.is_file, path.rglob("*"))
        elif path.is_absolute():
            files.append(path)
    return files


def _is_there(declared: DeclaredEditor | None, folder: Path) -> bool:
    try:
        return declared is not None and all(
            weights.is_there(wanted, folder)
            if wanted in weights.catalogue()
            else Path(wanted).exists() or (KINDS[declared.kind].hub and weights.is_cached(wanted))
            for wanted in declared.weights
        )
    except PermissionError as error:
        raise ConfigError(f"editors: weights {weights.denied(error)}") from error


def require_known(settings: Settings) -> None:
    """Check everything the configuration says of editors that needs no weights to be read.

    Raises:
        ConfigError: an unknown surrogate, held-out editor, kind or option (the nearest is named), a
            declaration under a built-in name, too many weights, a held-out editor that is a surrogate too.
    """
    for name, declared in settings.editors.items():
        _check(name, declared)
    surrogates = settings.protect.surrogates
    for setting, names in (
        ("protect.surrogates", () if surrogates == "auto" else surrogates),
        ("verify.held_out", settings.verify.held_out),
    ):
        for name in names:
            _require(name, known(settings), setting)
    require_apart(settings)


def _require(name: str, names: Collection[str], setting: str) -> None:
    if name in EDITORS and name not in names:
        raise ConfigError(f"{setting}: got {name!r}, whose place {EDITORS[name]!r} took; write that")
    require(name, names, setting)


def require_apart(settings: Settings) -> None:
    """Check that no held-out editor is a surrogate, too.

    Raises:
        ConfigError: one is.
    """
    for name in settings.verify.held_out:
        if settings.protect.surrogates != "auto" and name in settings.protect.surrogates:
            wrong = f"got {name}, which is one of protect.surrogates and so takes part in the optimisation"
            raise ConfigError(f"verify.held_out: {wrong}; name another editor, or none: held_out: []")


def require_other_weights(surrogates: Sequence[Editor], held_out: Sequence[Editor]) -> None:
    """Check that no held-out editor has the weights of a surrogate, which a second name would hide.

    It would confirm nothing: the perturbation was made to break these very weights.

    Raises:
        ConfigError: one has them.
    """
    names = {one.weights_sha256: one.name for one in surrogates}
    for one in held_out:
        if one.weights_sha256 in names:
            wrong = f"got {one.name}, whose weights are those of the surrogate {names[one.weights_sha256]}"
            expected = "expected an editor that is not optimised against"
            raise ConfigError(
                f"verify.held_out: {wrong}, {expected}; name another editor, or none: held_out: []"
            )


def _check(name: str, declared: DeclaredEditor) -> None:
    subject = f"editors.{name}"
    if name in NAMES:
        raise ConfigError(f"{subject}: {name} is built in; choose another name")
    kind = KINDS.require(declared.kind, f"{subject}.kind")
    for option in declared.options:
        require(option, kind.known, f"{subject}: option")
    try:
        kind.checked(declared.options)
    except ConfigError as error:
        raise ConfigError(f"{subject}.{error}") from error
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
    editor: Any = kind.load(name, tuple(paths), declared.options)
    if declared.start is not None:
        from backfire.inpaint import starts  # brings torch

        editor.stored_start = starts.read(declared.start, name, editor.weights_sha256)
    loaded: Editor = editor
    return loaded
