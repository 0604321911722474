"""The dashboard and the alert rules of the template use metrics that exist, as what they are."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import REGISTRY

from tests.promql import calls, grouped_by, selectors
from workerkit.config.sections import MetricsSettings
from workerkit.delivery import Action
from workerkit.health import State
from workerkit.ops.counting import METRICS
from workerkit.ops.metrics import _PUBLISH_OUTCOMES

MONITORING = Path(__file__).parents[2] / "app_template" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PREFIX = MetricsSettings().prefix
TARGET = {"job", "instance"}  # Prometheus adds these.
ON_COUNTERS = {"rate", "irate", "increase", "resets"}
# `outcome` and `state` have fixed values; so a matcher can be checked, too.
VALUES = {
    "deliveries_total": {"outcome": {*(each.value for each in Action), "lost", "expired"}},
    "publishes_total": {"outcome": {"confirmed", *_PUBLISH_OUTCOMES.values()}},
    "consumer_state": {"state": {each.value for each in State}},
}


def known() -> dict[str, tuple[str, set[str]]]:
    """Return the type and the labels of each name that Prometheus has."""
    found: dict[str, tuple[str, set[str]]] = {"up": ("gauge", set(TARGET))}
    for metric in METRICS:
        name, labels = f"{PREFIX}_{metric.name}", {*metric.labels, *TARGET}
        if metric.kind == "histogram":
            found[f"{name}_bucket"] = "bucket", {*labels, "le"}
            found |= {f"{name}_{each}": ("counter", labels) for each in ("count", "sum")}
        else:
            found[name] = metric.kind, labels
    for family in REGISTRY.collect():
        for sample in family.samples:
            found[sample.name] = family.type, {*sample.labels, *TARGET}
    return found


KNOWN = known()


def faults(expression: str) -> Iterator[str]:
    """Yield what is wrong with an expression, one sentence each."""
    found = selectors(expression)
    available = {label for each in found for label in KNOWN.get(each.name, ("", set()))[1]}
    for each in found:
        kind, labels = KNOWN.get(each.name, ("", set()))
        if not kind:
            yield f"there is no metric {each.name}"
            continue
        is_counted = bool(ON_COUNTERS & set(each.functions))
        if is_counted and kind not in ("counter", "bucket"):
            yield f"{each.name} is a {kind}: no {each.functions[0]}"
        if is_counted and not each.has_range:
            yield f"{each.name} has no range"
        for label, operator, value in each.matchers:
            if label not in labels:
                yield f"{each.name} has no label {label}"
            yield from value_faults(each.name, label, operator, value)
        if kind == "bucket" and "histogram_quantile" not in each.functions:
            yield f"{each.name} outside of histogram_quantile"
    yield from (f"no metric has the label {each}" for each in grouped_by(expression) - available)
    for argument in calls(expression, "histogram_quantile"):
        if any(KNOWN.get(each.name, ("",))[0] != "bucket" for each in selectors(argument)):
            yield "histogram_quantile of something else than buckets"
        if "le" not in grouped_by(argument):
            yield "histogram_quantile without the label le"


def value_faults(name: str, label: str, operator: str, value: str) -> Iterator[str]:
    """Yield the values of a matcher that the label never has."""
    values = VALUES.get(name.removeprefix(f"{PREFIX}_"), {}).get(label)
    if values is None or "$" in value:
        return
    wanted = value.split("|") if operator in ("=~", "!~") else [value]
    yield from (f"{name} has no {label} {each}" for each in wanted if each not in values)


def panels() -> list[dict[str, Any]]:
    """Return all panels but the rows."""
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("workerkit_nothing", "there is no metric workerkit_nothing"),
        ("rate(workerkit_ready[5m])", "workerkit_ready is a gauge: no rate"),
        ("sum(rate(process_open_fds[5m]))", "process_open_fds is a gauge: no rate"),
        ('workerkit_ready{queue="a"}', "workerkit_ready has no label queue"),
        (
            'workerkit_consumer_state{state=~"ready|gone"}',
            "workerkit_consumer_state has no state gone",
        ),
        (
            'increase(workerkit_publishes_total{outcome!="confirm"}[5m])',
            "workerkit_publishes_total has no outcome confirm",
        ),
        ("sum by (queue) (workerkit_in_flight)", "no metric has the label queue"),
        (
            "histogram_quantile(0.9, sum by (job) (rate(workerkit_publish_seconds_bucket[5m])))",
            "histogram_quantile without the label le",
        ),
        (
            "histogram_quantile(0.9, sum by (job) (rate(workerkit_publish_seconds_sum[5m])))",
            "histogram_quantile of something else than buckets",
        ),
        (
            "sum(rate(workerkit_publish_seconds_bucket[5m]))",
            "workerkit_publish_seconds_bucket outside of histogram_quantile",
        ),
        ("increase(workerkit_retries_total)", "workerkit_retries_total has no range"),
        ("workerkit_ready and on (job) workerkit_gone offset 5m > 1", "there is no metric work"),
    ],
)
def test_a_fault_of_an_expression_is_found(expression: str, fault: str) -> None:
    """The check finds each kind."""
    assert any(each.startswith(fault) for each in faults(expression)), list(faults(expression))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert(rule: dict[str, Any]) -> None:
    """Its expression is sound, and it says what has happened, how bad it is and what to do."""
    expression = rule["expr"]
    text = " ".join(rule["annotations"].values())
    labels = {label for each in selectors(expression) for label in KNOWN[each.name][1]}
    grouped = grouped_by(expression)

    assert list(faults(expression)) == []
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert all(rule["annotations"].values())
    used = set(re.findall(r"\$labels\.(\w+)", re.sub(r"\s+", "", text)))
    assert used <= (grouped or labels)
    assert "job" in used


def test_alerts_have_names_of_their_own() -> None:
    """Prometheus accepts two with the same name."""
    names = [rule["alert"] for rule in RULES]

    assert len(names) == len(set(names))


def test_the_documentation_lists_the_alerts() -> None:
    """In the same order, each with its severity."""
    page = (MONITORING.parents[1] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(Worker\w+)` \| (\w+) \|", page, re.MULTILINE)

    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


def test_each_alert_is_shown_to_fire() -> None:
    """`promtool test rules` runs them; it is not installed everywhere, so this is all we check."""
    text = (MONITORING / "alerts_test.yml").read_text()

    assert [
        rule["alert"] for rule in RULES if f'ALERTS{{alertname="{rule["alert"]}", ale' not in text
    ] == []


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel(panel: dict[str, Any]) -> None:
    """Its expressions are sound, follow the variables, and its legends have labels that exist."""
    references = [target["refId"] for target in panel["targets"]]

    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len(references) == len(set(references)) > 0
    for target in panel["targets"]:
        expression = target["expr"]
        found = selectors(expression)
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        labels = {label for each in found for label in KNOWN[each.name][1]}
        assert list(faults(expression)) == []
        assert legend <= (grouped_by(expression) or labels)
        assert all(("job", "=~", "$job") in each.matchers for each in found)
        assert target["datasource"] == panel["datasource"]
        for each in found:
            has_consumer = "consumer" in KNOWN[each.name][1]
            assert (("consumer", "=~", "$consumer") in each.matchers) == has_consumer


@pytest.mark.parametrize("title", ["Failed", "Retried", "Dead letters"])
def test_the_first_failure_of_a_kind_counts(title: str) -> None:
    """Its series begins with 1, and `increase` counts from the first value: it would be 0."""
    found = [
        target["expr"]
        for panel in panels()
        if panel["title"] == title
        for target in panel["targets"]
    ]

    assert found
    for expression in found:
        assert re.search(r"(workerkit_\w+\{.*\}) unless \1 offset ", expression), expression


def test_every_metric_has_a_panel() -> None:
    """A new metric needs one."""
    shown = {
        each.name
        for panel in panels()
        for target in panel["targets"]
        for each in selectors(target["expr"])
    }
    names = {re.sub(r"_(bucket|count|sum)$", "", each) for each in shown}

    assert {f"{PREFIX}_{each.name}" for each in METRICS} - names == set()


def test_grafana_can_import_the_dashboard() -> None:
    """Each panel has an id and a place of its own, and each variable that is used is defined."""
    every = DASHBOARD["panels"]
    ids = [each["id"] for each in every]
    variables = [each["name"] for each in DASHBOARD["templating"]["list"]]
    text = json.dumps([each.get("targets", []) for each in every])
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}

    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["id"] is None
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert len(ids) == len(set(ids))
    assert variables == ["datasource", "job", "consumer"]
    assert used == set(variables)
    assert all(each["title"] for each in every)
    for each in every:
        place = each["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        assert min(place["w"], place["h"]) > 0
    assert list(overlapping(every)) == []


def overlapping(every: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the titles of panels that cover each other."""
    for one, other in combinations(every, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        if not beside and not above:
            yield one["title"], other["title"]


@pytest.mark.parametrize("name", ["job", "consumer"])
def test_a_variable_has_the_values_of_a_label(name: str) -> None:
    """Of a metric that every process has."""
    [variable] = [each for each in DASHBOARD["templating"]["list"] if each["name"] == name]
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])

    assert found is not None
    assert found[2] == name
    assert list(faults(found[1])) == []
    assert name in KNOWN[selectors(found[1])[0].name][1]
    assert variable["datasource"]["uid"] == "${datasource}"
