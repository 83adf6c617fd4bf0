from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon import config
from daemon.config import Folders, Settings
from daemon.errors import ConfigError

ROOT = Path(__file__).parents[2]


def parse(data: dict[str, Any], base: Path = Path("/srv/pictures")) -> Settings:
    return config.parse(data, base=base)


def test_the_example_holds_every_setting_with_its_default() -> None:
    text = (ROOT / "config.example.yaml").read_text()
    example = yaml.safe_load(text)
    assert parse(example) == parse({"folders": {"inbox": "inbox"}})
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        if section == "editors":
            continue  # names of the user's own
        assert set(example[section]) == set(model.model_fields), section
    commented = text.replace(",\n", ", ")  # a list may break its line
    settings = [line for line in commented.splitlines() if line.startswith("  ") and ":" in line]
    assert [line for line in settings if "#" not in line] == []


def test_folders_default_to_siblings_of_the_inbox(tmp_path: Path) -> None:
    folders = parse({"folders": {"inbox": "drop/in"}}, tmp_path).folders
    assert folders.inbox == tmp_path / "drop" / "in"
    assert folders.outbox == tmp_path / "drop" / "outbox"
    assert folders.state == tmp_path / "drop" / "state"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("folders: {inbox: in, outbox: ../out}")
    folders = config.load(tmp_path / "c.yaml").folders
    assert folders.outbox == (tmp_path.parent / "out").resolve()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"folders": {"inbox": "i"}, "watch": {"settle": 3}}, "did you mean 'settle_s'"),
        ({"folders": {"inbox": "i"}, "protekt": {}}, "did you mean 'protect'"),
        ({"folders": {"inbox": "i"}, "zzz": 1}, "valid keys: folders, watch"),
        ({"folders": {}}, "'folders.inbox' is missing"),
        ({}, "'folders' is missing"),
        ({"folders": {"inbox": "i"}, "protect": {"epsilon": 0}}, "'protect.epsilon': got 0"),
        ({"folders": {"inbox": "i"}, "watch": {"mode": "magic"}}, "'watch.mode': got 'magic'"),
        ({"folders": {"inbox": "i", "outbox": "i/out"}}, "taken in again"),
        ({"folders": {"inbox": "i", "archive": "i"}}, "taken in again"),
    ],
)
def test_errors_name_the_key_and_the_remedy(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        parse(data)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"folders": {"inbox": "i"}, "watch": {"settle": 3}, "verify": {"onweak": "fail"}})
    assert "settle" in str(caught.value)
    assert "onweak" in str(caught.value)


def test_nesting_through_a_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="lie inside each other"):
        parse({"folders": {"inbox": "in", "outbox": "way/out"}}, tmp_path)


@pytest.mark.parametrize("text", ["- a list", "a: [", "just words", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        config.load(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("folders: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(path)


def test_digest_follows_what_decides_a_result() -> None:
    base = {"folders": {"inbox": "i"}}
    plain = parse(base)
    assert parse({**base, "watch": {"settle_s": 1}}).sha256 == plain.sha256
    assert parse({"folders": {"inbox": "elsewhere"}}).sha256 == plain.sha256
    assert parse({**base, "protect": {"iterations": 21}}).sha256 != plain.sha256


def test_settings_are_frozen() -> None:
    settings = Settings(folders=Folders(inbox=Path("i")))
    with pytest.raises(ValueError, match="frozen"):
        settings.protect.iterations = 3


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9477", "9477", "example.org:80", "[::]:80", "127.0.0.1:99999", "::1"]
)
def test_metrics_are_for_this_machine_only(address: str) -> None:
    with pytest.raises(ConfigError, match="an address of this machine"):
        parse({"folders": {"inbox": "i"}, "serve": {"metrics": address}})


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("localhost:80", "127.0.0.1"), ("[::1]:80", "::1")]
)
def test_loopback_addresses_are_taken(address: str, host: str) -> None:
    found = parse({"folders": {"inbox": "i"}, "serve": {"metrics": address}}).serve.address
    assert found is not None
    assert found[0] == host


@pytest.mark.parametrize(
    "url", ["ftp://u:hunter2@h/", "https://", "//hunter2", ["hunter2"], "http://h:hunter2/"]
)
def test_a_bad_webhook_is_not_repeated(url: Any) -> None:
    with pytest.raises(ConfigError, match=r"hooks\.webhook: is no address") as caught:
        parse({"folders": {"inbox": "i"}, "hooks": {"webhook": url}})
    assert "hunter2" not in str(caught.value)


def test_settings_show_no_webhook() -> None:
    settings = parse({"folders": {"inbox": "i"}, "hooks": {"webhook": "https://u:hunter2@h/"}})
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.sha256 == parse({"folders": {"inbox": "i"}}).sha256
