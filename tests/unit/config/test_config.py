from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from backfire import config
from backfire.config import STRENGTHS, Folders, Protect, Settings, renamed
from backfire.config.describe import settings
from backfire.config.example import ESSENTIAL, everything, starter
from backfire.errors import ConfigError

ROOT = Path(__file__).parents[3]


def parse(data: dict[str, Any], base: Path = Path("/srv/pictures")) -> Settings:
    return config.parse(data, base=base)


def test_the_example_configuration_is_current() -> None:
    text = (ROOT / "config.example.yaml").read_text()
    assert text == everything(), "python -m backfire.config > config.example.yaml"
    example = yaml.safe_load(text)
    assert parse(example) == parse({"folders": {"inbox": "inbox"}})
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        if section in ("editors", "rules"):
            continue  # the user's own
        assert set(example[section]) == set(model.model_fields), section


def test_every_setting_is_described() -> None:
    told = {setting.path: setting for setting in settings()}
    assert [path for path, one in told.items() if not re.fullmatch(r"[A-Z].{8,}\.", one.text)] == []
    assert told["protect.work_px"].values == "from 256 to 2,048, in steps of 8"
    assert told["regions.merge_px"].values == "from 0 to 4,096"
    assert told["hooks.timeout_s"].values == "more than 0, at most 600"
    assert told["verify.on_weak"].values == "one of publish, review, fail"
    assert told["protect.epsilon"].default == "null"
    assert "balanced 12, strong 16" in told["protect.epsilon"].text
    assert told["regions.torchscript.model"].text == told["regions.onnx.model"].text


def test_the_first_configuration_is_short_and_each_line_of_it_can_be_uncommented() -> None:
    live = yaml.safe_load(starter())
    paths = {f"{section}.{key}" for section, keys in live.items() for key, value in (keys or {}).items()}
    headings = {setting.path for setting in settings() if setting.section}
    assert paths - headings == set(ESSENTIAL)
    defaults = parse({"folders": {"inbox": "inbox"}})
    assert parse(live) == defaults
    comment = re.compile(r"^( *)# (?=[a-z0-9_]+: [^ ])", re.MULTILINE)
    assert yaml.safe_load(comment.sub(r"\1", starter())) == yaml.safe_load(everything())
    for found in comment.finditer(starter()):  # a line alone, without another one
        alone = starter()[: found.start()] + found[1] + starter()[found.end() :]
        assert parse(yaml.safe_load(alone)) == defaults


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("regions: {pad_px: 1}\nregions: {none_found: pass}", "regions", (2, 3)),
        ("protect:\n  epsilon: 4\n  strength: subtle\n  epsilon: 8", "epsilon", (3, 5)),
        ("rules:\n- {match: a, match: b}", "match", (3, 3)),
    ],
)
def test_a_repeated_key_is_an_error_that_names_both_lines(
    tmp_path: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"folders: {{inbox: in}}\n{text}\n")
    says = rf"c\.yaml: the key '{key}' is in line {lines[0]} and again in line {lines[1]},"
    with pytest.raises(ConfigError, match=says):
        config.load(path)


@pytest.mark.parametrize(
    "section",
    [{"hooks": {"command": ["~nobody-such/x", "SECRET"]}}, {"provenance": {"key": "~nobody-such/x"}}],
)
def test_a_home_folder_that_is_not_there_is_told(tmp_path: Path, section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'~nobody-such/x': got a user without a home folder") as refused:
        parse({"folders": {"inbox": "i"}, **section}, tmp_path)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ({"folders": {"inbox": "i", "outbox": "{}"}}, "folders.outbox"),
        ({"models": {"folder": "{}"}}, "models.folder"),
        ({"editors": {"one": {"kind": "lama", "weights": ["w", "{}"]}}}, "editors.one.weights"),
        ({"editors": {"one": {"kind": "lama", "weights": "w", "start": "{}"}}}, "editors.one.start"),
    ],
)
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "is empty, expected a path"),
        ("~nobody-such/x", "got '~nobody-such/x', but there is no such home folder; write the whole path"),
        ("\0", "holds a NUL character"),
    ],
)
def test_a_path_that_is_none_is_told_with_its_setting(
    tmp_path: Path, section: dict[str, Any], where: str, path: str, says: str
) -> None:
    given = json.loads(
        json.dumps({"folders": {"inbox": "i"}, **section}).replace("{}", json.dumps(path)[1:-1])
    )
    with pytest.raises(ConfigError, match=f"^settings: {where}: .*{says}"):
        parse(given, tmp_path)


def test_without_a_home_folder_the_setting_is_named_that_would_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user without an entry has none in a container."""

    def nobody(_: object) -> None:
        raise KeyError

    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    inbox = {"folders": {"inbox": "i"}}
    for section in ({}, {"models": {"folder": None}}):
        with pytest.raises(ConfigError, match=r"models\.folder: .* no such home folder; set models\.folder"):
            parse({**inbox, **section}, tmp_path)
    assert parse({**inbox, "models": {"folder": "m"}}, tmp_path).models.folder == tmp_path / "m"


def test_merged_keys_of_yaml_are_no_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "folders: {inbox: in}\n"
        "protect: &quick {<<: {iterations: 5, epsilon: 3}, epsilon: 4}\n"
        "rules:\n- {match: a/*, protect: {<<: *quick, iterations: 9}}\n"
    )
    settings = config.load(path)
    assert (settings.protect.iterations, settings.protect.epsilon) == (5, 4)
    ruled = settings.for_path(b"a/b").protect
    assert (ruled.iterations, ruled.epsilon) == (9, 4)


def test_a_section_whose_entries_are_commented_out_is_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "folders: {inbox: in}\nwatch:\n  # settle_s: 1\n  priorities:\n    # a: 1\nregions:\n  faces:\n"
        "  fixed:\nprotect:\nmodels:\neditors:\nrules:\n- match: a/*\n  regions:\n  faces:\n"
    )
    settings, plain = config.load(path), parse({"folders": {"inbox": "in"}}, tmp_path)
    assert settings.model_copy(update={"rules": ()}) == plain
    assert settings.for_path(b"a/b") == plain
    for text in ("regions:\n  detectors:", "watch:\n  settle_s:"):  # a key without a value
        path.write_text(f"folders: {{inbox: in}}\n{text}\n")
        with pytest.raises(ConfigError, match="got None"):
            config.load(path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("protect", "epsilon", True),
        ("watch", "settle_s", False),
        ("limits", "free_mb", True),
        ("watch", "priorities", {"a": True}),
        ("regions", "merge_px", True),
    ],
)
def test_a_boolean_is_not_taken_for_a_number(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"'{section}\.{key}': got .*a number is expected"):
        parse({"folders": {"inbox": "i"}, section: {key: value}})
    with pytest.raises(ConfigError, match="a number is expected"):
        parse({"folders": {"inbox": "i"}, "regions": {"fixed": [{"box": [False, 0, True, 1]}]}})


def test_an_old_name_is_an_error_that_names_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"'protect\.withstand' is now called 'protect\.robust_to'"):
        protect(withstand=["jpeg"])
    with pytest.raises(ConfigError, match=r"protect\.method: got 'recipe', which is now called 'baseline'"):
        protect(method="recipe")
    with pytest.raises(ConfigError, match=r"rules\.0: 'withstand' is now called 'robust_to'"):
        ruled({"match": "*", "withstand": ["jpeg"]})
    with pytest.raises(ConfigError, match=r"rules\.0: 'protect\.withstand' is now called"):
        ruled({"match": "*", "protect": {"withstand": ["jpeg"]}})
    for new in renamed.SETTINGS.values():
        assert new in {setting.path for setting in settings()}


def test_a_setting_that_is_gone_is_an_error_that_says_why() -> None:
    """Not a new name: the value of the old setting would mean something else in the new one."""
    with pytest.raises(ConfigError, match=r"'protect\.luma_share' is no setting any more: .*; take it out"):
        protect(luma_share=1)
    with pytest.raises(ConfigError, match=r"rules\.0: 'luma_share' is no setting any more"):
        ruled({"match": "*", "luma_share": 1})


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


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"regions": {"detectors": "faces"}}, "'regions.detectors': got 'faces', expected a list"),
        ({"watch": {"ignore": "*.tmp"}}, "'watch.ignore': got '*.tmp', expected a list"),
        ({"protect": "strong"}, "'protect': got 'strong', expected settings below it"),
        ({"rules": [{"match": "a", "protect": "strong"}]}, "'protect': got 'strong', expected its settings"),
        (
            {"rules": [{"match": "a", "strength": "strong", "protect": {"strength": "quick"}}]},
            "'protect.strength': is set in 'protect' and as 'strength' alone; leave one of them",
        ),
        (
            {"rules": [{"match": "a", "protect": {"strength": "quick"}, "strength": "strong"}]},
            "'protect.strength': is set in 'protect' and as 'strength' alone; leave one of them",
        ),
        (
            {"rules": [{"match": "a", "faces": {"min_px": 12}, "regions": {"faces": {"min_px": 20}}}]},
            "'regions.faces.min_px': is set in 'regions' and as 'faces.min_px' alone; leave one of them",
        ),
        (
            {"rules": [{"match": "a", "regions": {"faces": {"min_px": 20}}, "faces": {"min_px": 12}}]},
            "'regions.faces.min_px': is set in 'regions' and as 'faces.min_px' alone; leave one of them",
        ),
        ({"folders": {"inbox": None}}, "settings: 'folders.inbox': got None, expected a path"),
        ({"folders": {"inbox": "in", "state": 5}}, "expected a path; leave the line out for the default"),
        ({"verify": {"paths": "x"}}, "'verify.paths': got 'x', expected 'auto' or a list, such as [a, b]"),
        ({"verify": {"paths": ["a", 5]}}, "'verify.paths.1': got 5, expected text"),
        ({"cluster": {"actors": 0}}, "'cluster.actors': got 0, expected 'auto' or a number of 1 or more"),
        ({"cluster": {"actors": "x"}}, "'cluster.actors': got 'x', expected 'auto' or a whole number"),
        (
            {"rules": [{"match": "a", "verify": {"paths": 5}}]},
            "rules.0: 'verify.paths': got 5, expected 'auto' or",
        ),
    ],
)
def test_mistakes_are_told_in_the_terms_of_the_file(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse({"folders": {"inbox": "in"}, **data})
    assert "\n" not in str(caught.value)
    assert ("for the default" in str(caught.value)) is ("for the default" in says)


def test_a_rule_may_set_other_keys_of_a_section_alone_and_in_it() -> None:
    (rule,) = ruled(
        {"match": "a", "faces": {"min_px": 12}, "regions": {"merge_px": 3, "faces": {"score_min": 0.5}}}
    ).rules
    assert (rule.regions.faces.min_px, rule.regions.faces.score_min, rule.regions.merge_px) == (12, 0.5, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "output: {}\n  # serve:\npage: 127.0.0.1:9480",
            "unknown key 'page'; page belongs to serve; write `serve:` and below it `  page:`, with",
        ),
        (
            "output:\n  page: null",
            "unknown key 'output.page'; page belongs to serve; write `serve:` and below",
        ),
        (
            "regions:\n  min_px: 8",
            "write `regions:` and below it `  faces:` and below it `    min_px:`, with",
        ),
        ("verify:\n  attempts: 2", "belongs to protect or hooks; write, for that of protect, `protect:` and"),
        ("protect:\n  verify: {}", "verify belongs to no section; write `verify:`, with as many spaces"),
        (
            "protect:\n  strength: quick\n   epsilon: 8",
            "line 4, column 11: mapping values are not allowed here; epsilon belongs to protect; write",
        ),
        ("protect:\n  strength: quick\n   nothing: 8", "mapping values are not allowed here"),
        ("output:\n  format: png: x", "column 14: mapping values are not allowed here\n"),
    ],
)
def test_a_setting_that_lost_its_place_is_told_where_it_belongs(tmp_path: Path, text: str, says: str) -> None:
    """As where the # was taken from a setting and not from its section's heading."""
    file = tmp_path / "c.yaml"
    file.write_text(f"folders: {{inbox: in}}\n{text}\n")
    with pytest.raises(ConfigError) as told:
        config.load(file)
    assert says in f"{told.value}\n"


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"folders": {"inbox": "i"}, "watch": {"settle": 3}, "verify": {"onweak": "fail"}})
    assert "settle" in str(caught.value)
    assert "onweak" in str(caught.value)


def test_nesting_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="lie inside each other"):
        parse({"folders": {"inbox": "in", "outbox": "way/out"}}, tmp_path)


def test_a_program_that_may_outlast_the_patience_with_its_worker_is_refused() -> None:
    """The worker would be killed as hung, and its picture bear an attempt, while the program does well."""
    general: dict[str, Any] = {"folders": {"inbox": "in"}, "limits": {"silence_s": 100}}
    slow = {"detectors": ["command"], "command": {"argv": ["find"], "timeout_s": 100}}
    said = r"regions\.command\.timeout_s: got 100, expected less than limits\.silence_s \(100\)"
    for own in ({"regions": slow}, {"rules": [{"match": "a/**", "regions": slow}]}):
        with pytest.raises(ConfigError, match=said):
            parse({**general, **own})
    parse({**general, "regions": {**slow, "detectors": ["faces"]}})
    parse({**general, "regions": {**slow, "command": {"argv": ["find"], "timeout_s": 99}}})


@pytest.mark.parametrize("text", ["- a list", "a: [", "just words", ""])
def test_a_configuration_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        config.load(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("folders: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(path)


def test_the_digest_depends_on_what_decides_a_result() -> None:
    base = {"folders": {"inbox": "i"}}
    plain = parse(base)
    assert parse({**base, "watch": {"settle_s": 1}}).sha256 == plain.sha256
    assert parse({"folders": {"inbox": "elsewhere"}}).sha256 == plain.sha256
    assert parse({**base, "protect": {"iterations": 21}}).sha256 != plain.sha256


def ruled(*rules: Any, **sections: Any) -> Settings:
    return parse({"folders": {"inbox": "i"}, **sections, "rules": list(rules)})


def test_the_first_rule_that_matches_wins() -> None:
    settings = ruled(
        {"match": "portraits/**", "detectors": ["faces"], "epsilon": 8},
        {"match": "**/*.png", "output": {"format": "jpeg"}, "regions": {"none_found": "whole"}},
        protect={"iterations": 7},
    )
    assert settings.rule_of(b"portraits/a/b.png") == 0
    portrait = settings.for_path(b"portraits/a/b.png")
    assert (portrait.regions.detectors, portrait.protect.epsilon) == (("faces",), 8)
    assert portrait.protect.iterations == 7  # what the rule does not name stays as the file has it
    assert (settings.for_path(b"x.png").output.format, settings.rule_of(b"x.png")) == ("jpeg", 1)
    assert settings.for_path(b"x.jpg").output.format == "same"


def protect(**keys: Any) -> Protect:
    """The section `protect` of a configuration with these keys in it."""
    return parse({"folders": {"inbox": "i"}, "protect": keys}).protect


def test_a_strength_stands_for_settings_but_keys_beside_it_take_precedence() -> None:
    assert protect() == protect(strength="balanced") == Protect()
    assert {key: getattr(Protect(), key) for key in STRENGTHS["balanced"]} == STRENGTHS["balanced"]
    assert (protect(strength="paper").method, protect(strength="paper").iterations) == ("baseline", 20)
    strong = protect(strength="strong", iterations=7, epsilon=None)
    assert (strong.epsilon, strong.iterations) == (STRENGTHS["strong"]["epsilon"], 7)
    subtle, strong = protect(strength="subtle"), protect(strength="strong")
    assert subtle.epsilon < Protect().epsilon < strong.epsilon
    for wrong in ("stronk", ["strong"], None):
        with pytest.raises(ConfigError, match=r"protect\.strength"):
            protect(strength=wrong)


def test_a_further_round_never_has_less_than_the_one_before() -> None:
    rounds = protect(epsilon=6, iterations=5, escalate=["subtle", "strong"]).rounds()
    assert [(one.epsilon, one.iterations) for one in rounds] == [(6, 5), (8, 80), (16, 160)]
    assert [one.colour_share for one in rounds] == [0.28, 0.5, 0.5]
    assert [one.coarse_colour_decay for one in rounds] == [0, 0.6, 0.6]
    assert [one.flat_luma_share for one in rounds] == [0.03, 0.05, 0.1]
    assert [one.reach_px for one in rounds] == [40, 40, 56]
    assert protect().rounds() == [protect()]
    with pytest.raises(
        ConfigError, match=r"escalate: got method baseline.*set protect\.method: implant, or escalate: "
    ):
        protect(strength="paper", escalate=["strong"])


def test_the_strength_of_a_rule_takes_precedence_over_general_keys() -> None:
    settings = ruled(
        {"match": "a/*", "strength": "strong"},
        {"match": "b/*", "iterations": 9, "protect": {"strength": "strong"}},
        {"match": "c/*", "iterations": 9},
        protect={"strength": "subtle", "epsilon": 5},
    )
    strong, subtle = STRENGTHS["strong"], STRENGTHS["subtle"]
    found = [settings.for_path(path).protect for path in (b"a/x", b"b/x", b"c/x")]
    assert [(one.epsilon, one.iterations) for one in found] == [
        (strong["epsilon"], strong["iterations"]),
        (strong["epsilon"], 9),
        (5, 9),
    ]
    assert found[2].colour_share == subtle["colour_share"]


def test_a_size_for_publishing_counts_only_where_it_is_set() -> None:
    """Pictures that were published before there was such a setting are not done again."""
    base = {"folders": {"inbox": "inbox"}}
    plain = parse(base)
    assert "long_px" not in plain.deciding["output"]
    assert parse({**base, "output": {"long_px": None}}).sha256 == plain.sha256
    assert parse({**base, "output": {"long_px": 2048}}).sha256 != plain.sha256
    with pytest.raises(ConfigError, match=r"output\.long_px"):
        parse({**base, "output": {"long_px": 8}})


def test_a_strength_and_its_settings_have_the_same_digest() -> None:
    base: dict[str, Any] = {"folders": {"inbox": "i"}}
    said = parse({**base, "protect": STRENGTHS["strong"]})
    assert parse({**base, "protect": {"strength": "strong"}}).sha256 == said.sha256
    assert said.sha256 != parse(base).sha256


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("a/**", [b"a/b", b"a/b/c.jpg", b"a/\xff.jpg", b"a/x\ny"], [b"a", b"ab/c", b"b/a/c"]),
        ("**/a/*.jpg", [b"a/b.jpg", b"x/y/a/b.jpg"], [b"a/b/c.jpg", b"xa/b.jpg"]),
        ("*.jpg", [b"a.jpg", b".jpg"], [b"b/a.jpg", b"a.JPG", b"ajpg"]),
        ("a?.png", [b"ab.png"], [b"a/.png", b"a.png"]),
        ("[x](1)+.png", [b"[x](1)+.png"], [b"x1.png"]),
    ],
)
def test_which_paths_a_pattern_matches(pattern: str, fits: list[bytes], fits_not: list[bytes]) -> None:
    settings = ruled({"match": pattern})
    assert [path for path in fits if settings.rule_of(path) is None] == []
    assert [path for path in fits_not if settings.rule_of(path) is not None] == []


def test_the_digest_for_a_picture_depends_on_its_own_rule_only() -> None:
    plain, settings = parse({"folders": {"inbox": "i"}}), ruled({"match": "a/*", "epsilon": 9})
    assert settings.for_path(b"b.jpg").sha256 == plain.sha256
    assert settings.for_path(b"a/b.jpg").sha256 == ruled(protect={"epsilon": 9}).sha256
    assert settings.for_path(b"a/b.jpg").sha256 != plain.sha256


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"match": "*", "detektors": []}, r"rules\.0: unknown key 'detektors'; did you mean 'detectors'"),
        ({"match": "*", "folders": {}}, "unknown key 'folders'"),
        (
            {"match": "*", "paths": "first"},
            r"'paths': .* write protect: \{paths: …\} or verify: \{paths: …\}",
        ),
        ({"match": "*", "regions": {"none": 1}}, r"unknown key 'regions\.none'; did you mean 'none_found'"),
        ({"match": "*", "logos": {"foldr": "x"}}, "did you mean 'folder'"),
        ({"match": "*", "epsilon": 900}, r"'protect\.epsilon': got 900"),
        ({"match": "*", "protect": 3}, r"'protect'"),
        ({"match": 3}, "'match': got 3"),
        ({"detectors": ["faces"]}, "expected a mapping with the key 'match'"),
        ("portraits", "expected a mapping with the key 'match'"),
    ],
)
def test_bad_rules_are_named(rule: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ruled({"match": "fine"}, rule) if "0" not in says[:9] else ruled(rule)


def test_paths_within_sections_are_relative_to_the_file(tmp_path: Path) -> None:
    data = {"folders": {"inbox": "i"}, "rules": [{"match": "*", "logos": {"folder": "sub/logos"}}]}
    assert config.parse(data, base=tmp_path).rules[0].regions.logos.folder == tmp_path / "sub" / "logos"


@pytest.mark.parametrize(
    ("fixed", "says"),
    [
        ({"box": [0, 0, 3, 4]}, r"the relative box .* within 0\.\.1.*unit: pixels"),
        ({"box": [5, 0, 3, 4], "unit": "pixels"}, "expected left < right"),
        ({"bx": [0, 0, 1, 1]}, "did you mean 'box'"),
    ],
)
def test_bad_boxes_are_named(fixed: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"folders": {"inbox": "i"}, "regions": {"fixed": [fixed]}})


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


def test_metrics_and_page_have_an_address_each() -> None:
    def parsed(page: str) -> Settings:
        return parse({"folders": {"inbox": "i"}, "serve": {"metrics": "127.0.0.1:9477", "page": page}})

    for page in ("127.0.0.1:9477", "localhost:9477"):
        with pytest.raises(ConfigError, match=f"serve.page: got '{page}', .* give each a port of its own"):
            parsed(page)
    for page in ("127.0.0.1:9480", "[::1]:9477", "unix:/run/page.sock"):
        assert parsed(page).serve.page == page


@pytest.mark.parametrize("host", ["*", "http://h.example", "h.example:80", "a b", "", "[::1", "h.example/"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="expected a host name without scheme and port"):
        parse({"folders": {"inbox": "i"}, "serve": {"allowed_hosts": ["metrics.example.org", host]}})


@pytest.mark.parametrize("host", ["metrics.example.org", "*.example.org", "desk", "[fd00::1]", "192.0.2.7"])
def test_host_names_are_taken(host: str) -> None:
    found = parse({"folders": {"inbox": "i"}, "serve": {"allowed_hosts": [host]}})
    assert found.serve.allowed_hosts == (host,)


@pytest.mark.parametrize(
    "url", ["ftp://u:hunter2@h/", "https://", "//hunter2", ["hunter2"], "http://h:hunter2/"]
)
def test_a_bad_webhook_is_not_repeated(url: Any) -> None:
    with pytest.raises(ConfigError, match=r"hooks\.webhook: is no address") as caught:
        parse({"folders": {"inbox": "i"}, "hooks": {"webhook": url}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("written", ["open hunter2", 2, ["hunter2"], {"x": "hunter2"}, "hunter2\n"])
def test_a_passphrase_in_place_of_its_name_is_not_repeated(written: Any) -> None:
    provenance = {"certificate": "a", "key": "k", "passphrase": written}
    with pytest.raises(ConfigError, match=r"'provenance\.passphrase': is no name of a credential") as caught:
        parse({"folders": {"inbox": "i"}, "provenance": provenance})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "is_run"),
    [
        ("./tell", "{base}/tell"),
        ("bin/tell", "{base}/bin/tell"),
        ("~/tell", "/home/anna/tell"),
        ("tell", "tell"),
        ("/usr//bin/tell", "/usr//bin/tell"),
    ],
)
def test_a_program_lies_where_the_configuration_does_or_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, is_run: str
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    (tmp_path / "tell").symlink_to("elsewhere")
    words, expected = [named, "./as-it-is"], (is_run.format(base=tmp_path), "./as-it-is")
    file = tmp_path / "config.yaml"
    sections = {"regions": {"command": {"argv": words}}, "provenance": {"certificate": "c", "signer": words}}
    rules = [{"match": "a/*", "command": {"argv": words}}]
    data = {"folders": {"inbox": "i"}, "hooks": {"command": words}, **sections, "rules": rules}
    file.write_text(yaml.safe_dump(data))
    settings = config.load(file)
    found = settings.hooks.command, settings.regions.command.argv, settings.provenance.signer
    assert set(found) == {expected}
    assert settings.rules[0].regions.command.argv == expected


def test_settings_show_no_webhook() -> None:
    settings = parse({"folders": {"inbox": "i"}, "hooks": {"webhook": "https://u:hunter2@h/"}})
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.sha256 == parse({"folders": {"inbox": "i"}}).sha256
