"""docker/monitoring/ without a server: promtool's own checks, and what the files agree on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timeline
import yaml
from local_prometheus import configuration, duration, rules_file, with_hold
from prometheus_api import PrometheusError

MONITORING = Path(__file__).resolve().parents[2] / "docker" / "monitoring"
GRAFANA = MONITORING / "grafana"
SECTIONS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
RULES = [rule for section in SECTIONS for rule in section["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
BOARD = json.loads((GRAFANA / "dashboards" / "triton.json").read_text())
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in BOARD["panels"]}
UNITS = {"none", "reqps", "µs", "bytes", "percentunit"}  # Grafana's names

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")


def flat(expression: str) -> str:
    return re.sub(r"\s+", " ", expression).strip()


def targets() -> Iterator[tuple[str, str]]:
    for title, panel in PANELS.items():
        for target in panel["targets"]:
            yield title, target["expr"]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.prometheus
@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    done = promtool("check", "config", MONITORING / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.prometheus
@needs_promtool
def test_promtool_accepts_the_configuration_without_docker(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(json.dumps(configuration(tmp_path, 0.5)))
    (tmp_path / "rules.yml").write_text(with_hold(rules_file().read_text(), 0))
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.prometheus
@needs_promtool
def test_every_alert_fires_and_does_not_fire_as_its_unit_tests_say() -> None:
    done = promtool("test", "rules", MONITORING / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
@needs_promtool
@pytest.mark.parametrize("always", [False, True], ids=["never", "always"])
@pytest.mark.parametrize("name", ALERTS)
def test_the_unit_tests_notice_an_alert_that_is_broken(
    name: str, always: bool, tmp_path: Path
) -> None:
    broken = [
        rule | {"expr": "vector(1) > 0" if always else "vector(1) < 0"}
        if rule.get("alert") == name
        else rule
        for rule in RULES
    ]
    group = {"groups": [{"name": "recorded", "rules": broken}]}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(group))
    shutil.copy(MONITORING / "alerts_test.yml", tmp_path)
    done = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert done.returncode != 0
    assert f"alertname: {name}" in done.stdout + done.stderr


@pytest.mark.prometheus
@needs_promtool
def test_the_unit_tests_notice_a_recorded_expression_that_is_broken(tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts_test.yml", tmp_path)
    text = (MONITORING / "alerts.yml").read_text()
    for name, expression in RECORDED.items():
        groups = yaml.safe_load(text)["groups"]
        for rule in groups[0]["rules"]:
            if rule["record"] == name:
                rule["expr"] = f"2 * ({expression})"
        (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": groups}))
        assert promtool("test", "rules", tmp_path / "alerts_test.yml").returncode != 0, name


@pytest.mark.prometheus
@needs_promtool
def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}:{j}", "expr": target["expr"]}
        for i, panel in enumerate(BOARD["panels"])
        for j, target in enumerate(panel["targets"])
    ]
    rules += [
        {"record": f"annotation:{i}", "expr": note["expr"]}
        for i, note in enumerate(BOARD["annotations"]["list"])
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    file.write_text(file.read_text().replace("by (model)", "by (model", 1))
    assert promtool("check", "rules", file).returncode != 0


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_how_much_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert "$value" in rule["annotations"]["description"]
    assert re.fullmatch(r"\d+[sm]", rule["for"])


def test_alerts_are_few() -> None:
    assert len(ALERTS) <= 10


def test_every_rule_name_that_is_used_is_recorded_and_every_recorded_one_is_used() -> None:
    readers = [rule["expr"] for rule in RULES] + [expression for _, expression in targets()]
    used = {name for text in readers for name in re.findall(r"\b[a-z]\w*(?::\w+)+", text)}
    assert used == set(RECORDED)


def test_prometheus_reads_the_replicas_that_dockers_dns_knows() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (dns,) = job["dns_sd_configs"]
    assert (job["job_name"], dns["names"], dns["type"], dns["port"]) == (
        "triton",
        ["triton"],
        "A",
        8002,
    )
    # Mounted beside each other, so the path is relative to the configuration.
    assert config["rule_files"] == ["alerts.yml"]
    assert config["global"]["scrape_timeout"] <= config["global"]["scrape_interval"]
    here = configuration(Path("/folder"), 5)["scrape_configs"][0]
    assert (here["job_name"], here["metrics_path"]) == (job["job_name"], job["metrics_path"])


def test_panels_do_not_overlap_and_fit_the_grid() -> None:
    taken: dict[tuple[int, int], str] = {}
    for title, panel in PANELS.items():
        place = panel["gridPos"]
        assert place["w"] > 0 and place["h"] > 0 and place["x"] + place["w"] <= 24, title
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), title) == title, f"{title} lies on {taken[x, y]}"
    height = 1 + max(y for _, y in taken)
    assert len(taken) == 24 * height, "there is a hole in the grid"


def test_panels_are_told_apart_and_ask_a_question() -> None:
    assert len(PANELS) == len(BOARD["panels"])
    identifiers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for title, panel in PANELS.items():
        assert title.endswith("?"), title
        assert len(panel["description"]) > 20, title
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)), title


def test_panels_name_a_unit_and_a_legend() -> None:
    for title, panel in PANELS.items():
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert all(target["legendFormat"] for target in panel["targets"]), title
    shares = [p for p in PANELS.values() if p["fieldConfig"]["defaults"]["unit"] == "percentunit"]
    assert shares and all(p["fieldConfig"]["defaults"]["max"] == 1 for p in shares)


def test_a_legend_uses_labels_that_its_expression_keeps() -> None:
    for title, panel in PANELS.items():
        for target in panel["targets"]:
            expression = RECORDED.get(target["expr"], target["expr"])
            kept = re.findall(r"\bby \(([^)]*)\)", expression)
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert not kept or label in kept[0].split(", "), f"{title}: {label}"


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    text = (GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    asked = [panel["datasource"] for panel in BOARD["panels"]]
    asked += [target["datasource"] for panel in BOARD["panels"] for target in panel["targets"]]
    asked += [note["datasource"] for note in BOARD["annotations"]["list"]]
    assert all(a == {"type": source["type"], "uid": source["uid"]} for a in asked)
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    assert source["url"] == "http://prometheus:9090"


def test_the_dashboard_lies_where_grafana_is_told_to_look() -> None:
    text = (GRAFANA / "provisioning" / "dashboards" / "lab.yaml").read_text()
    (provider,) = yaml.safe_load(text)["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert provider["type"] == "file"
    assert BOARD["uid"] and "id" not in BOARD  # Grafana gives the id; the uid is in its address
    assert BOARD["schemaVersion"] >= 39  # Grafana 11; 12 migrates it
    assert BOARD["templating"]["list"] == []  # so every expression can be run as it stands


def test_the_tests_ask_what_the_dashboard_asks() -> None:
    known = {flat(text) for text in [*RECORDED.values(), *(text for _, text in targets())]}
    assert {flat(text) for text in timeline.EXPRESSIONS.values()} <= known
    assert all(timeline.WINDOW in text for text in timeline.EXPRESSIONS.values())


def test_another_hold_changes_nothing_but_the_hold() -> None:
    before = yaml.safe_load(rules_file().read_text())
    after = yaml.safe_load(with_hold(rules_file().read_text(), 1.5))
    for old, new in zip(before["groups"], after["groups"], strict=True):
        for rule, changed in zip(old["rules"], new["rules"], strict=True):
            assert changed == (rule | {"for": "1500ms"} if "alert" in rule else rule)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(PrometheusError, match="expected a duration"):
        duration(seconds)
