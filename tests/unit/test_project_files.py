"""The files around a new project: its image, compose, Kubernetes, systemd, CI, variables."""

import configparser
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from tests.command import workerkit
from workerkit import WorkerSettings
from workerkit.app.process import CLOSE_DEADLINE, HARD_DEADLINE
from workerkit.cli.new import create, template_directory
from workerkit.cli.scaffold import FEATURES

COMBINATIONS = [
    chosen for count in range(1, len(FEATURES) + 1) for chosen in combinations(FEATURES, count)
]
GRACE = WorkerSettings.model_fields["shutdown_grace"].default
# The longest time that a worker takes to stop: handlers, cancelled handlers, and the container.
STOPPING = GRACE + HARD_DEADLINE + CLOSE_DEADLINE
KUBERNETES = "1.33"


@dataclass(frozen=True)
class Project:
    """A generated project."""

    directory: Path
    features: tuple[str, ...]

    def text(self, path: str) -> str:
        """Return the text of a file."""
        return (self.directory / path).read_text()

    def yaml(self, path: str) -> Any:
        """Return the only document of a file."""
        return yaml.safe_load(self.text(path))

    @cached_property
    def manifests(self) -> dict[str, Any]:
        """The objects for Kubernetes by kind, each of which exists once."""
        paths = sorted(self.directory.glob("deploy/kubernetes/*.yaml"))
        objects = [each for path in paths for each in yaml.safe_load_all(path.read_text())]
        found = {each["kind"]: each for each in objects}
        assert len(found) == len(objects)
        return found

    @cached_property
    def pod(self) -> Any:
        """The specification of a pod."""
        return self.manifests["Deployment"]["spec"]["template"]["spec"]

    def variables(self) -> set[str]:
        """Return the variables of the settings that all files name."""
        files = (path for path in self.directory.rglob("*") if path.is_file())
        return set(re.findall(r"\bMY_ORDERS_\w*[A-Z]", "\n".join(map(Path.read_text, files))))


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Project]:
    """A project of each combination of features."""
    root = tmp_path_factory.mktemp("projects")
    made = {}
    for features in COMBINATIONS:
        directory = root / "-".join(features)
        create("my-orders", features, directory, template_directory())
        made[features] = Project(directory, features)
    return made


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def project(request: pytest.FixtureRequest, projects: dict[tuple[str, ...], Project]) -> Project:
    """One of these projects."""
    return projects[request.param]


@pytest.fixture
def whole(projects: dict[tuple[str, ...], Project]) -> Project:
    """The project with all features."""
    return projects[FEATURES]


def test_every_variable_exists(projects: dict[tuple[str, ...], Project]) -> None:
    """`workerkit settings` knows each variable that a file of a project names."""
    for features in [FEATURES, *COMBINATIONS[: len(FEATURES)]]:
        project = projects[features]
        done = workerkit("settings", "my_orders", "--json", cwd=project.directory)
        assert done.returncode == 0, done.stderr
        known = {row["variable"] for row in json.loads(done.stdout)}
        # A prefix of several variables, as in "the variables MY_ORDERS_OPS__...".
        unknown = {
            each for each in project.variables() if not any(k.startswith(each) for k in known)
        }
        assert unknown == set(), features


def test_the_image(whole: Project) -> None:
    """Its file has no finding, it does not run as root, and the files that it copies exist."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    linted = subprocess.run(
        [hadolint, "Dockerfile"], cwd=whole.directory, capture_output=True, text=True, check=False
    )
    *_, last = whole.text("Dockerfile").split("\nFROM ")
    copied = re.findall(r"^COPY (\S+) \S+$", last, re.MULTILINE)
    passed = re.findall(r"^!(.+)$", whole.text(".dockerignore"), re.MULTILINE)

    assert (linted.returncode, linted.stdout) == (0, "")
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    assert 'CMD ["workerkit", "probe", "live", "--prefix", "MY_ORDERS_"' in last
    # Process 1 must be the worker, not a shell that forwards no signals.
    assert last.rstrip().endswith('\nCMD ["workerkit", "run", "my_orders"]')
    assert sorted([*copied, "pyproject.toml", "*.whl"]) == sorted(passed)
    assert [each for each in copied if not (whole.directory / each).exists()] == []


def test_compose(project: Project) -> None:
    """Each service, volume and file that it names exists; only `amqp` has RabbitMQ."""
    compose = project.yaml("compose.yaml")
    services = compose["services"]
    mounts = [each for service in services.values() for each in service.get("volumes", [])]
    sources = [each.split(":")[0] for each in mounts]
    needed = chain.from_iterable(service.get("depends_on", ()) for service in services.values())

    assert set(needed) <= set(services)
    assert ("rabbitmq" in services) == ("amqp" in project.features)
    assert {each for each in sources if "/" not in each} == set(compose["volumes"])
    files = [each for each in sources if each.startswith("./")]
    assert [each for each in files if not (project.directory / each).is_file()] == []
    assert len(files) == 6
    assert _seconds(services["worker"]["stop_grace_period"]) > STOPPING
    ports = {each.split(":")[-1] for each in services["worker"]["ports"]}
    assert ports == ({"8080", "8081"} if "http" in project.features else {"8081"})


def test_monitoring_in_compose(whole: Project) -> None:
    """Prometheus, Grafana and the collector name services that exist, and mounted files."""
    compose = whole.yaml("compose.yaml")
    mounted = {
        each.split(":")[1] for name in compose["services"] for each in _volumes(compose, name)
    }
    prometheus = whole.yaml("deploy/compose/prometheus.yaml")
    sources = whole.yaml("deploy/compose/grafana-datasources.yaml")["datasources"]
    [provider] = whole.yaml("deploy/compose/grafana-dashboards.yaml")["providers"]
    collector = whole.yaml("deploy/compose/otel-collector.yaml")
    environment = compose["services"]["worker"]["environment"]
    addresses = [
        *chain.from_iterable(
            target["targets"]
            for job in prometheus["scrape_configs"]
            for target in job["static_configs"]
        ),
        *(each["url"].removeprefix("http://") for each in sources),
        *(each["endpoint"] for each in collector["exporters"].values()),
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://"),
    ]

    assert {each.split(":")[0] for each in addresses} <= set(compose["services"])
    assert set(prometheus["rule_files"]) <= mounted
    assert any(each.startswith(provider["options"]["path"]) for each in mounted)
    dashboard = json.loads(whole.text("monitoring/grafana-dashboard.json"))
    [wanted] = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert wanted["query"] in [each["type"] for each in sources]
    for pipeline in collector["service"]["pipelines"].values():
        for part, names in pipeline.items():
            assert set(names) <= set(collector[part])


def test_kubernetes(project: Project) -> None:
    """The objects are valid, the kustomization has them all; only `amqp` is scaled by a queue."""
    manifests = project.manifests
    kustomization = manifests["Kustomization"]
    files = {path.name for path in project.directory.glob("deploy/kubernetes/*.yaml")}
    for kind, each in manifests.items():
        if kind not in ("Kustomization", "ScaledObject", "TriggerAuthentication"):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
            assert each["metadata"]["name"] == "my-orders"

    assert set(kustomization["resources"]) == files - {"kustomization.yaml"}
    assert ("ScaledObject" in manifests) == ("amqp" in project.features)
    assert ("replicas" in manifests["Deployment"]["spec"]) == ("amqp" not in project.features)
    ports = {each["name"] for each in project.pod["containers"][0]["ports"]}
    assert ports == {each["targetPort"] for each in manifests["Service"]["spec"]["ports"]}
    assert ports == ({"ops", "http"} if "http" in project.features else {"ops"})


def test_a_pod(whole: Project) -> None:
    """It has probes and time to stop, is not root, and gets its variables."""
    [worker] = whole.pod["containers"]
    pages = [worker[f"{each}Probe"]["httpGet"] for each in ("startup", "liveness", "readiness")]
    data = whole.manifests["ConfigMap"]["data"]
    labels = whole.manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    scaled = whole.manifests["ScaledObject"]["spec"]
    secrets = [each["secretRef"]["name"] for each in worker["envFrom"] if "secretRef" in each]
    [authentication] = whole.manifests["TriggerAuthentication"]["spec"]["secretTargetRef"]

    assert [each["path"].removeprefix("/health/") for each in pages] == ["startup", "live", "ready"]
    assert {each["port"] for each in pages} == {"ops"}
    assert data["MY_ORDERS_OPS__HOST"] == "0.0.0.0"
    assert whole.pod["terminationGracePeriodSeconds"] > STOPPING
    assert float(data["MY_ORDERS_SHUTDOWN_GRACE"]) == GRACE
    assert whole.pod["securityContext"]["runAsNonRoot"]
    assert worker["securityContext"]["readOnlyRootFilesystem"]
    assert not worker["securityContext"]["allowPrivilegeEscalation"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selector = whole.manifests[kind]["spec"]["selector"]
        assert selector["matchLabels"].items() <= labels.items()
    assert whole.manifests["Service"]["spec"]["selector"].items() <= labels.items()
    assert scaled["scaleTargetRef"]["name"] == whole.manifests["Deployment"]["metadata"]["name"]
    assert authentication["name"] in secrets


def test_the_systemd_unit(whole: Project) -> None:
    """Its processes have time to stop, and it is restarted unless its settings are wrong."""
    # Keys may be repeated, and their case matters.
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(whole.text("deploy/my-orders.service"))
    service = unit["Service"]

    assert float(service["TimeoutStopSec"]) > STOPPING
    assert service["ExecStart"].endswith("/bin/workerkit run my_orders")
    assert service["RestartPreventExitStatus"] == "2"
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")


def test_the_makefile_and_ci(whole: Project) -> None:
    """CI and README use targets that exist, and `make help` describes each."""
    makefile = whole.text("Makefile")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    described = set(re.findall(r"make ([a-z]+) ", makefile))
    steps = [
        step["run"]
        for job in whole.yaml(".github/workflows/ci.yaml")["jobs"].values()
        for step in job["steps"]
        if step.get("run", "").startswith("make ")
    ]

    assert targets == described | {"help"}
    assert {word for step in steps for word in step.split()[1:]} == {"lint", "types", "test"}


def _volumes(compose: Any, service: str) -> Iterator[str]:
    yield from compose["services"][service].get("volumes", [])


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))
