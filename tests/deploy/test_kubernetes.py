"""docker/kubernetes/: against Kubernetes' own schemas, and what the manifests must agree on.

No cluster is here. Fields and types are checked by schema; whether a cluster does with them what
the comments say is not.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import (
    BASE,
    DOCKER,
    KUBERNETES,
    LAPTOP,
    POD,
    Manifest,
    base,
    built,
    kustomization,
    pod_spec,
    quantity,
    read,
    read_env,
)

from labkit.server import TritonServer

# The oldest that has its fields, and the newest that the package knows.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
KINDS = {
    "Namespace", "PersistentVolumeClaim", "Deployment", "Service",
    "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
}  # fmt: skip
INFERENCE_SERVICE = read(KUBERNETES / "kserve" / "inferenceservice.yaml")
ADAPTER = read(KUBERNETES / "prometheus-adapter-values.yaml")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")


@pytest.fixture(scope="module", params=["base", pytest.param("built", marks=needs_kubectl),
                                        pytest.param("laptop", marks=needs_kubectl)])  # fmt: skip
def manifests(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    """The files as they stand, and as kustomize builds base and overlay from them."""
    make = {"base": base, "built": lambda: built(BASE), "laptop": lambda: built(LAPTOP)}
    return make[request.param]()


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(copy.deepcopy(manifest), version, strict=True)


def container(manifests: dict[str, Manifest]) -> Manifest:
    (only,) = pod_spec(manifests["Deployment"])["containers"]
    return only


def volumes(manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    return {volume["name"]: volume for volume in pod_spec(manifests["Deployment"])["volumes"]}


class TestSchemas:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_every_manifest_fits_its_schema(
        self, manifests: dict[str, Manifest], version: str
    ) -> None:
        assert set(manifests) - {"ConfigMap"} in (KINDS, KINDS - {"HorizontalPodAutoscaler"})
        for manifest in manifests.values():
            validate(manifest, version)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_the_pod_that_fills_the_volume_fits_its_schema(self, version: str) -> None:
        validate(read(KUBERNETES / POD), version)

    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_an_unknown_field_is_refused(self, kind: str) -> None:
        manifest = copy.deepcopy(base()[kind])
        validate(manifest, VERSIONS[-1])
        manifest["spec"] = manifest.get("spec", {}) | {"replica": 2}
        with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
            validate(manifest, VERSIONS[-1])

    def test_a_wrong_type_and_a_field_of_a_container_are_refused(self) -> None:
        for change in ({"containerPort": "8000"}, {"port": 8000, "containerPort": 8000}):
            manifest = copy.deepcopy(base()["Deployment"])
            manifest["spec"]["template"]["spec"]["containers"][0]["ports"][0] = change
            with pytest.raises(kubernetes_validate.ValidationError):
                validate(manifest, VERSIONS[-1])

    def test_every_file_is_used(self) -> None:
        named = set(kustomization(BASE)["resources"])
        assert {path.name for path in BASE.glob("*.yaml")} == named | {"kustomization.yaml"}


class TestNamesThatMustAgree:
    def test_selectors_match_the_pods(self, manifests: dict[str, Manifest]) -> None:
        deployment = manifests["Deployment"]["spec"]
        labels = deployment["template"]["metadata"]["labels"].items()
        assert manifests["Deployment"]["metadata"]["labels"].items() >= {
            ("app.kubernetes.io/part-of", "cifar10-triton-lab")
        }
        spread = deployment["template"]["spec"]["topologySpreadConstraints"][0]
        selectors = [
            deployment["selector"]["matchLabels"],
            spread["labelSelector"]["matchLabels"],
            manifests["Service"]["spec"]["selector"],
            manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
            manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        ]
        for selector in selectors:
            assert selector and selector.items() <= labels

    def test_the_pod_that_fills_the_volume_is_no_replica(
        self, manifests: dict[str, Manifest]
    ) -> None:
        assert "labels" not in read(KUBERNETES / POD)["metadata"]
        assert read(KUBERNETES / POD)["metadata"]["namespace"] == "triton"

    def test_ports_have_one_name_each_everywhere(self, manifests: dict[str, Manifest]) -> None:
        ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
        assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
        service = manifests["Service"]["spec"]["ports"]
        assert {port["name"]: port["port"] for port in service} == ports
        assert all(port["targetPort"] == port["name"] for port in service)
        rules = manifests["NetworkPolicy"]["spec"]["ingress"]
        assert [[port["port"] for port in rule["ports"]] for rule in rules] == [
            ["http", "grpc"],
            ["metrics"],
        ]
        notes = manifests["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert notes["prometheus.io/port"] == str(ports["metrics"])

    def test_the_autoscaler_and_everything_else_name_what_exists(
        self, manifests: dict[str, Manifest]
    ) -> None:
        if "HorizontalPodAutoscaler" in manifests:
            target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
            found = manifests["Deployment"]
            assert target == {
                "apiVersion": found["apiVersion"],
                "kind": found["kind"],
                "name": found["metadata"]["name"],
            }
            assert "replicas" not in found["spec"]  # it would undo the autoscaler
        else:
            assert manifests["Deployment"]["spec"]["replicas"] == 1
        claim = manifests["PersistentVolumeClaim"]["metadata"]["name"]
        found_volumes = volumes(manifests)
        assert found_volumes["repository"]["persistentVolumeClaim"]["claimName"] == claim
        (filling,) = pod_spec(read(KUBERNETES / POD))["volumes"]
        assert filling["persistentVolumeClaim"]["claimName"] == claim
        assert INFERENCE_SERVICE["spec"]["predictor"]["model"]["storageUri"] == f"pvc://{claim}"
        mounts = {mount["name"] for mount in container(manifests)["volumeMounts"]}
        assert mounts == set(found_volumes)

    def test_all_lies_in_one_namespace(self, manifests: dict[str, Manifest]) -> None:
        assert manifests["Namespace"]["metadata"]["name"] == kustomization(BASE)["namespace"]

    def test_the_image_is_the_one_of_compose(self, manifests: dict[str, Manifest]) -> None:
        image = read_env()["TRITON_IMAGE"]
        (pin,) = kustomization(BASE)["images"]
        assert f"{pin['name']}:{pin['newTag']}" == image
        assert container(manifests)["image"] in (image, pin["name"])
        model = INFERENCE_SERVICE["spec"]["predictor"]["model"]
        assert model["runtimeVersion"] == pin["newTag"]

    def test_the_script_is_the_one_of_compose(self) -> None:
        copied, original = BASE / "serve.sh", DOCKER / "serve.sh"
        assert copied.read_text() == original.read_text(), f"run: cp {original} {copied}"


@needs_kubectl
class TestWhatKustomizeBuilds:
    @pytest.mark.parametrize("folder", [BASE, LAPTOP], ids=["base", "laptop"])
    def test_image_namespace_and_script_are_put_in(self, folder: Any) -> None:
        manifests = built(folder)
        assert container(manifests)["image"] == read_env()["TRITON_IMAGE"]
        for kind, manifest in manifests.items():
            assert kind == "Namespace" or manifest["metadata"]["namespace"] == "triton"
        script = manifests["ConfigMap"]
        assert script["data"]["serve.sh"] == (DOCKER / "serve.sh").read_text()
        # The hash in its name makes a change of the script a change of the pods.
        assert re.fullmatch(r"serve-script-\w{10}", script["metadata"]["name"])
        mounted = volumes(manifests)["script"]["configMap"]["name"]
        assert mounted == script["metadata"]["name"]

    def test_the_overlay_is_smaller_and_changes_nothing_else(self) -> None:
        full, small = built(BASE), built(LAPTOP)
        assert set(full) - set(small) == {"HorizontalPodAutoscaler"}
        limits = [quantity(container(m)["resources"]["limits"]["memory"]) for m in (full, small)]
        assert limits[1] < limits[0]
        assert small["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
        for kind in ("Namespace", "Service", "NetworkPolicy", "PodDisruptionBudget", "ConfigMap"):
            assert full[kind] == small[kind]
        before, after = pod_spec(full["Deployment"]), pod_spec(small["Deployment"])
        assert before.keys() == after.keys()
        for key in before.keys() - {"containers", "volumes"}:
            assert before[key] == after[key]
        assert len(before["volumes"]) == len(after["volumes"])


class TestStartAndStop:
    def test_probes_ask_the_right_question_on_a_port_that_exists(
        self, manifests: dict[str, Manifest]
    ) -> None:
        triton = container(manifests)
        ports = {port["name"] for port in triton["ports"]}
        paths = {
            "startupProbe": "/v2/health/ready",
            "readinessProbe": "/v2/health/ready",
            "livenessProbe": "/v2/health/live",
        }
        for name, path in paths.items():
            assert triton[name]["httpGet"]["path"] == path
            assert triton[name]["httpGet"]["port"] in ports
            assert triton[name]["timeoutSeconds"] <= triton[name]["periodSeconds"]

    def test_there_is_as_much_time_to_start_as_the_lab_gives(
        self, manifests: dict[str, Manifest]
    ) -> None:
        probe = container(manifests)["startupProbe"]
        allowed = probe["periodSeconds"] * probe["failureThreshold"]
        assert allowed >= TritonServer.start_timeout_s

    def test_liveness_is_the_more_patient_one(self, manifests: dict[str, Manifest]) -> None:
        def patience(name: str) -> int:
            probe = container(manifests)[name]
            return probe["periodSeconds"] * probe["failureThreshold"]

        assert patience("livenessProbe") >= 60
        assert patience("readinessProbe") < patience("livenessProbe")

    def test_there_is_time_to_end_in_order(self, manifests: dict[str, Manifest]) -> None:
        triton = container(manifests)
        wait, seconds = triton["lifecycle"]["preStop"]["exec"]["command"]
        environment = {entry["name"]: entry["value"] for entry in triton["env"]}
        needed = int(seconds) + int(environment["EXIT_TIMEOUT_S"])
        assert wait == "sleep"
        assert pod_spec(manifests["Deployment"])["terminationGracePeriodSeconds"] > needed
        assert "EXIT_TIMEOUT_S" in (BASE / "serve.sh").read_text()

    def test_an_update_never_has_less_than_before(self, manifests: dict[str, Manifest]) -> None:
        update = manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxUnavailable": 0, "maxSurge": 1}

    def test_a_node_can_be_emptied(self, manifests: dict[str, Manifest]) -> None:
        budget = manifests["PodDisruptionBudget"]["spec"]
        assert budget["maxUnavailable"] == 1 and "minAvailable" not in budget
        if "HorizontalPodAutoscaler" in manifests:
            assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2


class TestLimits:
    def test_shared_memory_and_models_fit_the_limit(self, manifests: dict[str, Manifest]) -> None:
        resources = container(manifests)["resources"]
        shm = volumes(manifests)["shm"]["emptyDir"]
        assert shm["medium"] == "Memory"  # so it counts as the container's memory
        models = quantity(resources["requests"]["memory"])
        spare = quantity(resources["limits"]["memory"]) - models - quantity(shm["sizeLimit"])
        assert spare >= quantity("512Mi")
        assert quantity(shm["sizeLimit"]) > quantity("64Mi")

    def test_the_overlay_and_compose_are_of_a_size(self) -> None:
        limit = container(base())["resources"]["limits"]["memory"]
        assert quantity(limit) == quantity(read_env()["TRITON_MEMORY"].upper() + "i")

    def test_every_container_and_every_volatile_volume_has_limits(
        self, manifests: dict[str, Manifest]
    ) -> None:
        for manifest in (manifests["Deployment"], read(KUBERNETES / POD)):
            for each in pod_spec(manifest)["containers"]:
                asked, limits = each["resources"]["requests"], each["resources"]["limits"]
                assert asked.keys() == limits.keys() == {"cpu", "memory"}
                assert all(quantity(asked[key]) <= quantity(limits[key]) for key in asked)
            for volume in pod_spec(manifest)["volumes"]:
                assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]


class TestRights:
    def test_nothing_runs_with_more_rights_than_it_needs(
        self, manifests: dict[str, Manifest]
    ) -> None:
        for manifest in (manifests["Deployment"], read(KUBERNETES / POD)):
            spec = pod_spec(manifest)
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] > 0
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            for each in spec["containers"]:
                assert each["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
            assert not any("hostPath" in volume for volume in spec["volumes"])

    def test_the_server_reads_its_models_and_writes_only_what_is_its_own(
        self, manifests: dict[str, Manifest]
    ) -> None:
        found = volumes(manifests)
        assert found["repository"]["persistentVolumeClaim"]["readOnly"] is True
        writable = {
            mount["mountPath"]
            for mount in container(manifests)["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable == {"/models", "/dev/shm", "/tmp"}
        # What docker/serve.sh reads and writes where nothing else is said.
        script = (BASE / "serve.sh").read_text()
        assert "${REPOSITORY:-/model_repository}" in script and "${MODELS:-/models}" in script
        command = container(manifests)["command"]
        mounts = {mount["mountPath"] for mount in container(manifests)["volumeMounts"]}
        assert command == ["sh", "/opt/lab/serve.sh"]
        assert {"/model_repository", "/models", "/opt/lab"} <= mounts

    def test_the_namespace_refuses_pods_with_more_rights(
        self, manifests: dict[str, Manifest]
    ) -> None:
        labels = manifests["Namespace"]["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"

    def test_only_the_gateway_and_the_monitoring_get_in_and_only_names_get_out(
        self, manifests: dict[str, Manifest]
    ) -> None:
        policy = manifests["NetworkPolicy"]["spec"]
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        inference, metrics = policy["ingress"]
        gateway = {"matchLabels": {"cifar10-triton-lab/role": "gateway"}}
        assert inference["from"] == [{"podSelector": gateway}, {"namespaceSelector": gateway}]
        (monitoring,) = metrics["from"]
        assert monitoring["namespaceSelector"]["matchLabels"] == {
            "kubernetes.io/metadata.name": "monitoring"
        }
        (names,) = policy["egress"]
        assert {(port["port"], port["protocol"]) for port in names["ports"]} == {
            (53, "UDP"),
            (53, "TCP"),
        }
        assert all(rule.get("from") for rule in policy["ingress"])  # without: from anywhere
        assert all(rule.get("to") for rule in policy["egress"])


class TestAutoscaler:
    def test_it_asks_for_the_metric_that_the_adapter_offers(self) -> None:
        (metric,) = base()["HorizontalPodAutoscaler"]["spec"]["metrics"]
        (rule,) = ADAPTER["rules"]["custom"]
        assert metric["type"] == "Pods"
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
        assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
        for label in rule["resources"]["overrides"]:
            assert f'{label}!=""' in rule["seriesQuery"]

    def test_the_adapter_computes_what_is_recorded(self) -> None:
        groups = yaml.safe_load((DOCKER / "monitoring" / "alerts.yml").read_text())["groups"]
        recorded = next(
            rule["expr"]
            for rule in groups[0]["rules"]
            if rule["record"] == "instance:triton_queue_us_per_request:rate1m"
        )
        (rule,) = ADAPTER["rules"]["custom"]
        asked = rule["metricsQuery"].replace("{<<.LabelMatchers>>}", "")
        asked = asked.replace("<<.GroupBy>>", "job, instance")
        assert asked.split() == recorded.split()

    def test_target_alert_and_line_in_the_dashboard_are_one_number(self) -> None:
        spec = base()["HorizontalPodAutoscaler"]["spec"]
        target = int(spec["metrics"][0]["pods"]["target"]["averageValue"])
        board = json.loads((DOCKER / "monitoring/grafana/dashboards/triton.json").read_text())
        (panel,) = [p for p in board["panels"] if "Kubernetes" in p["title"]]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert [step["value"] for step in steps] == [None, target]
        alerts = (DOCKER / "monitoring" / "alerts.yml").read_text()
        assert f"model:triton_queue_us_per_request:rate1m > {target}\n" in alerts

    def test_it_grows_faster_than_it_shrinks_and_within_bounds(self) -> None:
        spec = base()["HorizontalPodAutoscaler"]["spec"]
        assert 2 <= spec["minReplicas"] < spec["maxReplicas"] <= 10
        up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
        assert up["stabilizationWindowSeconds"] < down["stabilizationWindowSeconds"]

        def per_second(policy: Manifest) -> float:
            return policy["value"] / policy["periodSeconds"]

        assert per_second(up["policies"][0]) > per_second(down["policies"][0])


class TestKServe:
    """KServe's schema is in no small package: its own fields by hand, the rest by schema."""

    def test_the_frame(self) -> None:
        assert INFERENCE_SERVICE["apiVersion"] == "serving.kserve.io/v1beta1"
        assert INFERENCE_SERVICE["kind"] == "InferenceService"
        assert set(INFERENCE_SERVICE) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(INFERENCE_SERVICE["spec"]) == {"predictor"}
        model = INFERENCE_SERVICE["spec"]["predictor"]["model"]
        assert model["modelFormat"] == {"name": "triton", "version": "2"}
        assert model["protocolVersion"] == "v2"
        assert re.fullmatch(r"pvc://[a-z0-9-]+(/\S+)?", model["storageUri"])
        assert model["args"] == ["--model-control-mode=none"]

    @pytest.mark.parametrize("version", VERSIONS)
    def test_what_is_left_is_a_pod(self, version: str) -> None:
        predictor = copy.deepcopy(INFERENCE_SERVICE["spec"]["predictor"])
        for own in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"):
            predictor.pop(own)
        model = predictor.pop("model")
        for own in ("modelFormat", "protocolVersion", "runtimeVersion", "storageUri"):
            model.pop(own)
        container = model | {"name": "kserve-container", "image": "image"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": INFERENCE_SERVICE["metadata"],
            "spec": predictor | {"containers": [container]},
        }
        validate(pod, version)

    def test_it_has_the_limits_and_rights_of_the_deployment(self) -> None:
        predictor = INFERENCE_SERVICE["spec"]["predictor"]
        assert predictor["model"]["resources"] == container(base())["resources"]
        (shm,) = predictor["volumes"]
        assert shm == volumes(base())["shm"]
        assert predictor["securityContext"]["runAsNonRoot"] is True
        assert predictor["automountServiceAccountToken"] is False
        assert predictor["model"]["securityContext"]["allowPrivilegeEscalation"] is False
