"""`backfire cluster check` names the node that differs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from backfire.admin.cluster import compared, open_ports
from backfire.service.worker.survey import Node, facts

USUAL = {"Backfire": "1.0", "torch": "2.9", "editor mini": "0123456789ab", "detector logos": "ba9876543210"}


def remedies(*nodes: Node) -> dict[str, str]:
    return {check.subject.removeprefix("node "): check.remedy for check in compared(nodes)}


def node(name: str, **other: str) -> Node:
    facts = {**USUAL, **{key.replace("_", " "): value for key, value in other.items()}}
    return Node(name, 1, "8 CPU", facts)


def test_nodes_that_are_alike_are_all_well() -> None:
    head = Node("head", 0, "no device", {"Backfire": "1.0", "torch": "2.9"})
    assert set(remedies(head, node("a"), node("b")).values()) == {""}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"Backfire": "0.9"}, "Backfire is 0.9, on most nodes 1.0"),
        ({"editor_mini": "ba"}, "editor mini is ba"),
        ({"detector_logos": "ab"}, "detector logos is ab, on most nodes ba9876543210"),
    ],
)
def test_the_node_that_differs_is_named_and_no_other(what: dict[str, str], said: str) -> None:
    found = remedies(node("a"), node("b", **what), node("c"))
    assert said in found.pop("b")
    assert set(found.values()) == {""}


def test_of_two_nodes_that_differ_neither_is_called_the_usual_one() -> None:
    found = remedies(node("a"), node("b", torch="2.8"))
    assert "torch is 2.9, on others 2.8" in found["a"]
    assert "torch is 2.8, on others 2.9" in found["b"]


def test_weights_that_cannot_be_used_anywhere_are_said_of_all() -> None:
    told = "not usable: fetch them"
    found = remedies(node("a", editor_mini=told), node("b", editor_mini=told))
    assert all("editor mini is not usable: fetch them" in remedy for remedy in found.values())


def test_a_node_that_does_not_answer_is_named_with_the_reason() -> None:
    found = remedies(node("a"), Node("b", 1, "8 CPU", trouble="its worker died"))
    assert found == {"a": "", "b": "its worker died"}


def test_a_node_tells_the_digest_of_what_its_detectors_work_with(tmp_path: Path) -> None:
    regions: dict[str, Any] = {"detectors": ["onnx", "command"], "onnx": {"model": str(tmp_path / "n.onnx")}}
    regions["command"] = {"argv": [str(tmp_path / "find")]}
    (tmp_path / "n.onnx").write_bytes(b"network")
    sections = {"regions": regions, "protect": {"surrogates": ["flux2-micro"]}, "verify": {"held_out": []}}
    told = facts([sections])
    assert re.fullmatch("[0-9a-f]{12}", told["detector onnx"])
    assert told["detector command"].startswith("not usable: ")


def test_ports_of_ray_that_are_open_to_all_are_found_also_without_ipv6(tmp_path: Path) -> None:
    for number, (name, sockets) in {"7": ("raylet", [1, 2]), "8": ("sshd", [3])}.items():
        (tmp_path / number / "fd").mkdir(parents=True)
        (tmp_path / number / "comm").write_text(f"{name}\n")
        (tmp_path / number / "fd" / "0").write_text("closed just now, and opened as another file")
        for socket in sockets:
            (tmp_path / number / "fd" / str(socket)).symlink_to(f"socket:[{socket}]")
    (tmp_path / "9").mkdir()
    (tmp_path / "net").mkdir()
    listening = "0: {}:{:04X} 00000000:0000 0A 0:0 0:0 0 1000 0 {}"
    lines = [
        listening.format("00000000", 6380, 1),
        listening.format("0100007F", 6381, 2),
        listening.format("00000000", 22, 3),
    ]
    (tmp_path / "net" / "tcp").write_text("\n".join(["sl local_address", *lines]))
    assert open_ports(tmp_path) == {6380}
    assert open_ports(tmp_path / "nothing") == set()
