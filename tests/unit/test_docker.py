"""Dockerfile, Compose files, the image's configuration and the guide fit each other; no engine is needed."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from backfire import config
from backfire.config import Settings
from tests.unit.test_documents import commands

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/docker.md").read_text()
SERVICES = ("daemon", "page", "models")


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The image's configuration."""
    return config.load(ROOT / "packaging/docker/config.yaml")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml, with variables at their defaults."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text())
    assert "${" not in text
    document = yaml.safe_load(text)
    assert set(document["volumes"]) == {"state", "models"}
    return dict(document["services"])


def instructions(word: str) -> list[str]:
    """What follows the word in the Dockerfile, continued lines as one."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{word} (.+)$", text, re.MULTILINE)


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, PurePosixPath, bool]]:
    """Source, target, and whether it can be written to."""
    for volume in service["volumes"]:
        if isinstance(volume, dict):
            yield volume["source"], PurePosixPath(volume["target"]), not volume.get("read_only", False)
        else:
            source, target, *options = volume.split(":")
            yield source, PurePosixPath(target), "ro" not in options


def test_what_the_configuration_names_is_mounted(settings: Settings, services: dict[str, Any]) -> None:
    for name in ("daemon", "page"):
        written = [target for _, target, writable in mounts(services[name]) if writable]
        for folder in settings.folders.named().values():
            assert any(PurePosixPath(folder).is_relative_to(target) for target in written), (name, folder)
    weights = {name: {t: w for _, t, w in mounts(services[name])} for name in ("daemon", "models")}
    there = PurePosixPath(settings.models.folder)
    assert weights["daemon"][there] is False
    assert weights["models"][there] is True


def test_volumes_begin_as_the_users_own(services: dict[str, Any]) -> None:
    """An engine gives a new volume the owner of the image's folder in its place."""
    [user] = [line for line in instructions("RUN") if "useradd" in line]
    made = user.partition("install -d -o backfire -g backfire ")[2].split()
    for name in SERVICES:
        for source, target, _ in mounts(services[name]):
            assert str(target) in made, source


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    assert set(services) == set(SERVICES)
    [environment] = [line for line in instructions("ENV") if "HOME=" in line]
    home = re.search(r"HOME=(\S+)", environment)
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert home is not None
        assert [line.partition(":")[0] for line in service["tmpfs"]] == [home[1]]
        assert "privileged" not in service
        assert "ports" not in service
    assert services["daemon"]["network_mode"] == "none"
    assert instructions("USER") == ["${UID}:${GID}"]


def test_health_checks_ask_what_is_served(settings: Settings, services: dict[str, Any]) -> None:
    asked = {name: services[name]["healthcheck"]["test"][-1] for name in ("daemon", "page")}
    assert f"http://{settings.serve.metrics}/healthz" in asked["daemon"]
    assert f"http://{settings.serve.page}/" in asked["page"]
    for script in asked.values():
        compile(script, "healthcheck", "exec")


def test_the_dockerfile_copies_what_is_there_and_what_the_context_holds() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [line for line in instructions("COPY") if "--from" not in line]
    sources = [source for line in copied for source in line.split()[:-1]]
    assert {"pyproject.toml", "daemon", "packaging/docker/config.yaml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, kept_one) or source.startswith(f"{kept_one}/") for kept_one in kept), (
            source
        )
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {needed["readme"], *needed["license-files"]} <= set(sources)


def test_build_arguments_exist(services: dict[str, Any]) -> None:
    gpu = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]["daemon"]
    there = {line.partition("=")[0] for line in instructions("ARG")}
    given = services["daemon"]["build"]["args"].keys() | gpu["build"]["args"].keys()
    assert given <= there
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    named = set(re.findall(r"\bBACKFIRE_\w+", GUIDE))
    assert named == set(re.findall(r"\$\{(BACKFIRE_\w+)", (ROOT / "compose.yaml").read_text()))


def test_services_run_commands_that_exist(services: dict[str, Any]) -> None:
    """Those of the image, of compose.yaml, and of `docker compose run` in the guide."""
    [entrypoint], [default] = instructions("ENTRYPOINT"), instructions("CMD")
    assert yaml.safe_load(entrypoint) == ["backfire"]
    assert yaml.safe_load(default) == ["run"]
    assert services["page"]["command"] == ["page"]
    models = services["models"]
    assert " ".join([*models["entrypoint"][1:], *models["command"]]) in commands()
    ran = []
    for line in re.findall(r"^docker compose run .+$", GUIDE, re.MULTILINE):
        words = shlex.split(line, comments=True)
        if "--entrypoint" in words:
            continue
        service = next(word for word in words[3:] if not word.startswith("--"))
        rest = words[words.index(service) + 1 :]
        ran.append(" ".join([*services[service].get("entrypoint", ["backfire"])[1:], rest[0]]))
        options = {word for word in rest if word.startswith("--")}
        assert options <= commands()[ran[-1]], line
    assert {"check", "models fetch", "models list"} <= set(ran) <= set(commands())
    for service in re.findall(
        r"docker compose (?:exec|logs --follow|restart|kill --signal HUP) (\w+)", GUIDE
    ):
        assert service in services


def test_overrides_in_the_guide_are_of_services_that_exist(services: dict[str, Any]) -> None:
    overrides = re.findall(r"compose\.override\.yaml <<'END'\n(.*?)^END", GUIDE, re.DOTALL | re.MULTILINE)
    overrides += re.findall(r'^```yaml title="compose\.override\.yaml"\n(.*?)^```', GUIDE, re.DOTALL | re.M)
    assert len(overrides) == 2
    for text in overrides:
        for name, override in yaml.safe_load(text)["services"].items():
            assert override.keys() <= services[name].keys() | {"volumes"}
            assert "./config:/etc/backfire:ro" in override["volumes"]
    assert "/etc/backfire/config.yaml" in " ".join(instructions("COPY"))
    assert instructions("WORKDIR")[-1] == "/etc/backfire"
