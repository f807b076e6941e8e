"""The alert rules: sound, each with a runbook and unit tests both ways, over metrics and labels that really exist."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import CrewMetrics, Metrics
from gateway.upkeep.keep_database import KeepDatabase
from tests.support.behaviours import Completion, failure
from tests.support.completion import changed
from tests.support.gateway import CALLS_AT_ONCE_MAX, Farebox
from tests.support.tools import tool
from tests.support.upstream import FakeUpstream

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "farebox.yml"
RULE_TESTS = sorted((RULES.parent / "tests").glob("*.yml"))
RUNBOOKS = DEPLOY / "runbooks"

_SERIES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_SELECTOR = re.compile(r"(farebox_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
# What Prometheus itself adds to every series.
_TARGET_LABELS = {"job", "instance"}


def rules() -> dict[str, str]:
    """Each alert's name and the YAML of its rule; the file is ours, and regular."""
    parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def expression(rule: str) -> str:
    """The PromQL of a rule's YAML."""
    found = re.search(r"expr: (.*?)\n +(?:for|labels):", rule, re.DOTALL)
    assert found, rule
    return found[1]


def series() -> dict[str, set[str]]:
    """Every series that a gateway can expose, with its labels."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for metric in (*vars(metrics).values(), *vars(CrewMetrics(metrics.registry)).values()):
        if isinstance(metric, CollectorRegistry):
            continue
        (family,) = metric.collect()
        # Whichever of the two knows them: our tallies' families, or prometheus-client's metrics.
        labels = set(getattr(family, "_labelnames", ()) or getattr(metric, "_labelnames", ()))
        for suffix in _SERIES[family.type]:
            found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def selectors(text: str) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """Every metric that is selected in `text`, with the label values that it is matched with."""
    for metric, inside in _SELECTOR.findall(text):
        yield metric, {label: set(values.split("|")) for label, _, values in _MATCHER.findall(inside)}


def run_promtool(*arguments: str) -> None:
    promtool = tool("promtool", "Debian and Ubuntu have it in their package prometheus")
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    run_promtool("check", "rules", str(RULES))


def test_promtool_accepts_the_example_configuration() -> None:
    run_promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.example.yml"))


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    run_promtool("test", "rules", *map(str, RULE_TESTS))


def test_each_alert_has_a_unit_test_that_fires_it_and_one_that_does_not() -> None:
    text = "\n".join(path.read_text() for path in RULE_TESTS)
    silent = set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", text))
    fires = set(re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n +- exp_labels:", text))
    assert set(rules()) - fires == set(), "no unit test fires these"
    assert set(rules()) - silent == set(), "no unit test shows these silent"


@pytest.mark.parametrize("alert", sorted(rules()))
def test_alert_says_what_an_operator_needs(alert: str) -> None:
    rule = rules()[alert]
    assert re.search(r"severity: (critical|warning)$", rule, re.MULTILINE)
    assert "summary: " in rule
    assert "description: " in rule
    assert f"runbook: deploy/runbooks/{alert}.md\n" in rule + "\n"
    page = RUNBOOKS / f"{alert}.md"
    assert page.read_text().startswith(f"# {alert}\n"), f"{page} is missing, or is headed otherwise"


def test_every_runbook_belongs_to_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(rules())


def test_every_metric_in_a_rule_or_a_runbook_exists_with_its_labels() -> None:
    known = series()
    pages = [path.read_text() for path in RUNBOOKS.glob("*.md")]
    queries = "\n".join("\n".join(re.findall(r"```promql\n(.*?)```", page, re.DOTALL)) for page in pages)
    for metric, matched in selectors("\n".join(map(expression, rules().values())) + queries):
        assert metric in known, f"{metric} is not a metric of gateway/metrics.py"
        assert matched.keys() <= known[metric] | _TARGET_LABELS, f"{metric} has no such label: {matched}"
    for page in pages:
        for metric in re.findall(r"`(farebox_\w+)`", page):
            assert {metric, f"{metric}_bucket"} & known.keys(), f"a runbook names {metric}, which does not exist"


def test_every_label_in_a_rule_is_a_label_of_a_metric() -> None:
    labels = set().union(*series().values()) | _TARGET_LABELS
    for alert, rule in rules().items():
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule):
            assert set(re.split(r", *", group)) <= labels, alert


async def scraped(farebox: Farebox) -> dict[str, list[dict[str, str]]]:
    """The samples of a gateway by name, each as its labels."""
    async with farebox.session.get(f"{farebox.ops_url}/metrics") as reply:
        text = await reply.text()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def runbook_services() -> set[str]:
    page = (RUNBOOKS / "FareboxUpkeepStale.md").read_text()
    return set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


async def all_services_ran(farebox: Farebox) -> None:
    """Wait until each service has run once that the runbook names and this gateway has. Raises TimeoutError."""
    count = len(runbook_services() - {KeepDatabase.name})  # its PostgreSQL is not its own
    async with asyncio.timeout(10):
        while len((await scraped(farebox)).get("farebox_upkeep_last_success_seconds", ())) < count:
            await asyncio.sleep(0.02)


async def test_every_label_value_in_a_rule_is_one_that_a_gateway_exports(
    gateway: Farebox, upstream: FakeUpstream
) -> None:
    # A mistyped value would leave an alert silent for ever, and promtool could not tell.
    upstream.next(
        Completion(), Completion(usage=changed(prompt_tokens=-5)), failure(400), failure(503, "busy"), failure(404)
    )
    for _ in range(5):
        async with gateway.chat() as reply:
            await reply.read()
    standing = gateway.app.gateway.relay.asker.standings["up0"]
    standing.in_flight += CALLS_AT_ONCE_MAX
    async with gateway.chat() as reply:
        assert reply.status == 503
    standing.in_flight -= CALLS_AT_ONCE_MAX
    gateway.app.gateway.stopping = True
    async with gateway.chat() as reply:
        assert reply.status == 503
    await all_services_ran(gateway)
    exported = await scraped(gateway)
    for metric, matched in selectors("\n".join(map(expression, rules().values()))):
        for label, values in matched.items():
            seen = {labels.get(label) for labels in exported.get(metric, [])}
            assert values <= seen, f"{metric}: no gateway exports {label} = {values - seen}; it has {seen}"


async def test_the_runbook_of_upkeep_knows_every_service(gateway: Farebox) -> None:
    await all_services_ran(gateway)
    seen = {labels["service"] for labels in (await scraped(gateway))["farebox_upkeep_last_success_seconds"]}
    assert seen | {KeepDatabase.name} == runbook_services()
