"""The Kubernetes manifests: valid to the API's own schemas, and in agreement with one another and with the service."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from support.deployment import PYPROJECT, ROOT, SETTINGS, documents

from app.cli import _GRACE_S  # private: no caller needs it
from app.cli import cli as serving
from app.main import create_app
from app.settings import Settings
from training.cli import cli

FOLDER = ROOT / "deploy/kubernetes"
# A component's files are patches and no manifests of their own.
COMPONENT = "redis-tls"
MANIFESTS = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml" and path.parent.name != COMPONENT
)
# What operators bring; the Kubernetes API itself does not know these kinds.
CUSTOM = {"RedisCluster", "PodMonitor"}
# The oldest release that is meant to do, and the newest that there are schemas for.
RELEASES = ["1.31", "1.37"]


def names(paths):
    return [str(path.relative_to(FOLDER)) for path in paths]


@pytest.fixture(scope="module")
def validate():
    """Check a manifest against a release. The import takes seconds, so that only these tests do it."""
    from kubernetes_validate import validate  # noqa: PLC0415 - see above

    return lambda document, release: validate(document, release, strict=True)


def resource(path):
    [document] = documents(FOLDER / path)
    return document


def pod(path):
    return resource(path)["spec"]["template"]["spec"]


SERVE = pod("base/deployment.yaml")["containers"][0]
TRAIN = pod("training/job.yaml")["containers"][0]
CONFIG = dict(
    line.split("=", 1) for line in (FOLDER / "base/settings.env").read_text().splitlines() if not line.startswith("#")
)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", names(MANIFESTS))
def test_a_manifest_is_valid(validate, path, release):
    document = resource(path)
    if document["kind"] in CUSTOM:
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        return

    validate(document, release)


@pytest.mark.parametrize(
    "folder", sorted({path.parent.name for path in FOLDER.rglob("kustomization.yaml")} - {COMPONENT})
)
def test_a_kustomization_lists_every_manifest_of_its_folder(folder):
    kustomization = resource(f"{folder}/kustomization.yaml")

    bases = {name for name in kustomization["resources"] if name.startswith("../")}
    assert set(kustomization["resources"]) - bases == {path.name for path in MANIFESTS if path.parent.name == folder}
    assert all((FOLDER / folder / base / "kustomization.yaml").is_file() for base in bases)
    generated = kustomization.get("configMapGenerator", [])
    assert all((FOLDER / folder / path).is_file() for made in generated for path in made.get("envs", []))
    merged = [literal for made in generated for literal in made.get("literals", [])]
    assert {literal.partition("=")[0] for literal in merged} <= SETTINGS
    for image in kustomization.get("images", []):
        assert image["newTag"] == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("path", ["base/deployment.yaml", "kafka/deployment.yaml", "training/job.yaml"])
def test_a_pod_keeps_to_the_restricted_security_standard(path):
    spec = pod(path)
    [container] = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001, "the Dockerfile's user"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        ("base/deployment.yaml", {"base", "monitoring"}),
        ("kafka/deployment.yaml", {"kafka", "monitoring"}),
        ("training/job.yaml", {"training"}),
    ],
    ids=["serve", "consume", "train"],
)
def test_everything_that_selects_pods_finds_them(path, folders):
    labels = resource(path)["spec"]["template"]["metadata"]["labels"]
    selecting = [
        document
        for manifest in MANIFESTS
        if manifest.parent.name in folders
        and (document := resource(manifest.relative_to(FOLDER)))["kind"]
        in {"Service", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"}
    ]

    assert selecting
    for document in selecting:
        spec = document["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        assert selector.get("matchLabels", selector).items() <= labels.items(), document["kind"]
        one_of = {one["key"]: one["values"] for one in selector.get("matchExpressions", [])}
        component = one_of.get(
            "app.kubernetes.io/component", [selector.get("matchLabels", selector).get("app.kubernetes.io/component")]
        )
        assert labels["app.kubernetes.io/component"] in component, document["kind"]


def test_the_consumer_is_the_service_with_another_command():
    serve, consume = pod("base/deployment.yaml"), pod("kafka/deployment.yaml")
    [container] = consume["containers"]
    name, *options = container["args"]
    given = typer.main.get_group(serving).commands[name].make_context(name, options).params

    assert (given["host"], given["topic"], given["scores"]) == ("0.0.0.0", "events", "scores")
    [mount] = [one for one in container["volumeMounts"] if one not in SERVE["volumeMounts"]]
    assert Path(mount["mountPath"]) == given["properties"].parent
    [volume] = [one for one in consume["volumes"] if one not in serve["volumes"]]
    assert volume["name"] == mount["name"]
    for part in ("envFrom", "ports", "startupProbe", "livenessProbe", "readinessProbe", "resources", "securityContext"):
        assert container[part] == SERVE[part], part
    assert [one for one in container["env"] if one["name"] != "WILLBUY_DRAIN_DELAY_S"] == SERVE["env"]


def test_the_configuration_is_one_that_the_service_takes(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in CONFIG.items():
        assert name in SETTINGS, name
        monkeypatch.setenv(name, value)

    settings = Settings()

    # Files are mounted where the settings look for them.
    mounted = {mount["mountPath"] for mount in SERVE["volumeMounts"]}
    assert str(settings.artifact.parent) in mounted
    assert settings.api_keys_file is not None
    assert str(settings.api_keys_file.parent) in mounted
    assert settings.open_access is False


def test_a_secret_is_only_referred_to():
    assert all(document["kind"] != "Secret" for path in names(MANIFESTS) for document in [resource(path)])
    [redis_url] = SERVE["env"]
    assert redis_url["name"] == "WILLBUY_REDIS_URL"
    assert redis_url["valueFrom"]["secretKeyRef"]["key"] == "url"


def test_what_a_pod_refers_to_is_there():
    there = {(resource(path)["kind"], resource(path)["metadata"]["name"]) for path in names(MANIFESTS)}
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for path in ("base/deployment.yaml", "training/job.yaml")
        for volume in pod(path)["volumes"]
        if "persistentVolumeClaim" in volume
    ]

    assert {("PersistentVolumeClaim", claim) for claim in claims} <= there
    [generated] = resource("base/kustomization.yaml")["configMapGenerator"]
    assert generated == {"name": SERVE["envFrom"][0]["configMapRef"]["name"], "envs": ["settings.env"]}
    assert ("ServiceAccount", pod("base/deployment.yaml")["serviceAccountName"]) in there
    scaled = resource("base/horizontalpodautoscaler.yaml")["spec"]
    assert (scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"]) in there
    assert scaled["metrics"][0]["containerResource"]["container"] == SERVE["name"]
    redis = resource("redis/rediscluster.yaml")["spec"]
    for role in ("redisLeader", "redisFollower"):
        assert ("ConfigMap", redis[role]["redisConfig"]["additionalRedisConfig"]) in there


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_a_probe_asks_a_path_that_the_service_has(probe, artifact):
    app = create_app(Settings(artifact=artifact, open_access=True))

    assert SERVE[probe]["httpGet"]["path"] in app.openapi()["paths"]
    assert SERVE[probe]["httpGet"]["port"] == SERVE["ports"][0]["name"]


def test_a_restart_does_not_hang_on_redis():
    assert SERVE["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert SERVE["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_replica_has_the_time_to_drain():
    hook_s = SERVE["lifecycle"]["preStop"]["sleep"]["seconds"]
    delay_s = float(CONFIG["WILLBUY_DRAIN_DELAY_S"])
    request_s = Settings.model_fields["request_timeout_s"].default
    probe = SERVE["readinessProbe"]

    assert pod("base/deployment.yaml")["terminationGracePeriodSeconds"] > hook_s + delay_s + request_s + _GRACE_S
    assert delay_s > probe["periodSeconds"] * probe["failureThreshold"]


def test_a_disruption_takes_one_replica_at_a_time():
    budget = resource("base/poddisruptionbudget.yaml")["spec"]
    scaled = resource("base/horizontalpodautoscaler.yaml")["spec"]

    assert budget["maxUnavailable"] == 1
    assert scaled["minReplicas"] > 1
    # Else applying the manifests would set the number back.
    assert "replicas" not in resource("base/deployment.yaml")["spec"]


def test_the_training_job_starts_as_many_processes_as_it_has_pods():
    job = resource("training/job.yaml")
    service = resource("training/service.yaml")
    spec = job["spec"]
    arguments = TRAIN["args"]
    first_pod = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    port = service["spec"]["ports"][0]["port"]

    assert TRAIN["command"] == ["torchrun"]
    assert spec["completions"] == spec["parallelism"]
    assert f"--nnodes={spec['completions']}" in arguments
    assert f"--rdzv-endpoint={first_pod}:{port}" in arguments
    assert pod("training/job.yaml")["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"


def test_the_training_job_asks_for_what_willbuy_train_knows():
    arguments = TRAIN["args"]
    program = arguments[arguments.index("-m") :]
    assert program[:3] == ["-m", "training", "train"]
    group: Any = typer.main.get_command(cli)

    context = group.commands["train"].make_context("train", program[3:])

    mounts = [mount["mountPath"] for mount in TRAIN["volumeMounts"]]
    for name in ("data", "out", "storage__scratch"):
        assert any(Path(mount) in (path := context.params[name]).parents or Path(mount) == path for mount in mounts)
    assert context.params["resume"] is True


def test_redis_refuses_writes_before_the_kernel_kills_it():
    [configuration] = resource("redis/configmap.yaml")["data"].values()
    lines = dict(line.split(" ", 1) for line in configuration.splitlines() if line and not line.startswith("#"))
    limit = resource("redis/rediscluster.yaml")["spec"]["kubernetesConfig"]["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert int(lines["maxmemory"].removesuffix("mb")) * 10**6 < 0.75 * int(limit.removesuffix("Gi")) * 2**30
    assert lines["maxmemory-policy"] == "noeviction"


def test_only_the_service_redis_and_its_operator_reach_redis():
    policy = resource("redis/networkpolicy.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all("from" in rule and "ports" in rule for rule in policy["ingress"])
    there = {value for one in policy["podSelector"]["matchExpressions"] for value in one["values"]}
    asked = {
        selector["podSelector"]["matchLabels"]["app"]
        for rule in resource("base/networkpolicy.yaml")["spec"]["egress"]
        for selector in rule["to"]
        if "app" in selector["podSelector"]["matchLabels"]
    }
    assert asked == there


@pytest.mark.parametrize("path", ["base/deployment.yaml", "kafka/deployment.yaml"])
def test_the_component_for_tls_to_redis_mounts_the_files_that_its_settings_name(validate, path):
    deployment = resource(path)
    before = pod(path)
    operations: Any = documents(FOLDER / "redis-tls/deployment.yaml")[0]
    for operation in operations:
        *parts, last = operation["path"].split("/")[1:]
        assert (operation["op"], last) == ("add", "-")
        there = deployment
        for part in parts:
            there = there[int(part) if part.isdigit() else part]
        there.append(operation["value"])
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    new = [one for one in container["env"] if one not in before["containers"][0]["env"]]
    mount, volume = container["volumeMounts"][-1], spec["volumes"][-1]

    validate(deployment, RELEASES[0])
    assert {one["name"] for one in new} <= SETTINGS
    assert {one["name"].removeprefix("WILLBUY_REDIS_") for one in new} == {"CA_FILE", "CERT_FILE", "KEY_FILE"}
    assert all(Path(one["value"]).parent == Path(mount["mountPath"]) for one in new)
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    assert volume["secret"] == {"secretName": "willbuy-redis-tls", "defaultMode": 0o440}


def test_the_component_for_tls_to_redis_changes_every_deployment():
    [patch] = resource("redis-tls/kustomization.yaml")["patches"]
    assert patch["path"] == "deployment.yaml"
    assert patch["target"]["kind"] == "Deployment"
    deployments = [path for path in names(MANIFESTS) if resource(path)["kind"] == "Deployment"]
    assert len(deployments) == 2
    assert all(re.fullmatch(patch["target"]["name"], resource(path)["metadata"]["name"]) for path in deployments)
