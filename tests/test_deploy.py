"""The files in deploy/: against the schemas of what reads them, and against this repository."""

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

from shapray.cluster.metrics import NAMES
from shapray.config import load_job

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DEFINITIONS = ROOT.parent / "shared" / "kuberay"
MANIFESTS = {"rayjob.yaml": "RayJob", "raycluster.yaml": "RayCluster"}
LAUNCHER_FILES = ["aws.yaml", "gcp.yaml"]


def documents(name: str) -> dict[str, Any]:
    """The objects of a manifest by kind."""
    return {
        each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())
    }


def cluster_spec(name: str) -> dict[str, Any]:
    spec = documents(name)[MANIFESTS[name]]["spec"]
    return spec.get("rayClusterSpec", spec)


# --- KubeRay ---------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A structural schema as plain JSON Schema in which unknown fields are errors, as they are for
    ``kubectl apply --validate=strict``: the API server drops what the definition does not name."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return rest | {"type": ["integer", "string"]}
    result = dict(schema)
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {key: closed(each) for key, each in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            result[key] = closed(schema[key])
    open_ended = (
        schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    )
    if isinstance(schema.get("properties"), dict) and not open_ended:
        result["additionalProperties"] = False
    return result


@cache
def definition(kind: str) -> dict[str, Any]:
    """The schema of the custom resource's version v1."""
    if not DEFINITIONS.is_dir():
        pytest.skip(f"KubeRay's custom resource definitions are not in {DEFINITIONS}")
    text = (DEFINITIONS / f"ray.io_{kind.lower()}s.yaml").read_text()
    resource = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in resource["spec"]["versions"] if each["name"] == "v1"]
    return closed(version["schema"]["openAPIV3Schema"])


def findings(kind: str, manifest: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(definition(kind))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize(("name", "kind"), MANIFESTS.items())
def test_manifest_is_what_kuberay_defines(name: str, kind: str) -> None:
    manifest = documents(name)[kind]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert findings(kind, manifest) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"backofLimit": 3}, "'backofLimit' was unexpected"),
        ({"backoffLimit": "3"}, "'3' is not of type 'integer'"),
        (
            {
                "rayClusterSpec": {
                    "autoscalerOptions": {"resources": {"limits": {"memory": "1GiB"}}}
                }
            },
            "'1GiB' does not match",
        ),
        (
            {"rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"container": []}}}}},
            "container",
        ),
    ],
)
def test_the_check_finds_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    manifest = documents("rayjob.yaml")["RayJob"]
    found = findings("RayJob", manifest | {"spec": manifest["spec"] | change})
    assert any(complaint in each for each in found), found


def test_the_job_in_the_config_map_is_a_job_and_is_where_the_entrypoint_looks(
    tmp_path: Path,
) -> None:
    found = documents("rayjob.yaml")
    (file,) = found["ConfigMap"]["data"]
    head = cluster_spec("rayjob.yaml")["headGroupSpec"]["template"]["spec"]
    (volume,) = head["volumes"]
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    entrypoint = shlex.split(found["RayJob"]["spec"]["entrypoint"])
    assert entrypoint == ["python", "-m", "shapray.run", f"{mount['mountPath']}/{file}"]

    (tmp_path / file).write_text(found["ConfigMap"]["data"][file])
    job = load_job(tmp_path / file)
    assert job.output.startswith("s3://")
    assert job.cluster.grows is cluster_spec("rayjob.yaml")["enableInTreeAutoscaling"]
    (group,) = cluster_spec("rayjob.yaml")["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert job.cluster.gpus_per_worker <= int(limits["nvidia.com/gpu"])
    assert job.cluster.cpus_per_worker <= int(limits["cpu"])
    assert job.cluster.workers <= group["maxReplicas"]
    in_image = [job.model.weights, job.data.calibration.path, job.data.evaluation.path]
    for path in in_image:
        assert path is not None
        assert (ROOT / Path(path).relative_to("/opt/shapray")).is_file()


@pytest.mark.parametrize("name", MANIFESTS)
def test_only_the_workers_work_and_only_they_are_on_spot_nodes(name: str) -> None:
    spec = cluster_spec(name)
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"

    def operators(template: dict[str, Any]) -> set[str]:
        rule = template["spec"]["affinity"]["nodeAffinity"]
        terms = rule["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return {match["operator"] for term in terms for match in term["matchExpressions"]}

    assert operators(head["template"]) == {"NotIn"}
    for group in spec["workerGroupSpecs"]:
        assert operators(group["template"]) == {"In"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert ("nvidia.com/gpu" in resources["limits"]) == group["groupName"].startswith("gpu")


@pytest.mark.parametrize("name", MANIFESTS)
def test_all_pods_run_one_image_as_a_plain_user(name: str) -> None:
    spec = cluster_spec(name)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    assert f"rayproject/ray:{spec['rayVersion']}-" in dockerfile("ARG")[0]


# --- cluster launcher ------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_file_is_what_ray_defines(name: str) -> None:
    config = yaml.safe_load((DEPLOY / name).read_text())
    validate_config(fillout_defaults(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [each for key, each in types.items() if key != config["head_node_type"]]
    assert all(each["resources"]["GPU"] and each["max_workers"] for each in workers)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_file_copies_what_it_installs(name: str) -> None:
    config = yaml.safe_load((DEPLOY / name).read_text())
    for there, here in config["file_mounts"].items():
        assert (ROOT / here).exists()
        assert there == f"/home/ray/shapray/{here}"
    (install,) = [each for each in config["setup_commands"] if "pip install" in each]
    assert re.search(r"'/home/ray/shapray\[(s3|gcs)\]'$", install)


def test_jobs_are_told_that_these_clusters_grow() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", "")
    submitted = re.findall(r"^.*ray job submit --address.*$", text, re.MULTILINE)
    assert len(submitted) == 3
    assert all("cluster.grows=true" in command for command in submitted)


# --- image -----------------------------------------------------------------------------------


def dockerfile(instruction: str) -> list[str]:
    """The arguments of all instructions of a kind."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = lines.replace("\\\n", " ")
    return re.findall(rf"^{instruction}\s+(.+)$", lines, re.MULTILINE)


def test_the_image_copies_what_exists_and_runs_as_a_plain_user() -> None:
    copied = [shlex.split(each) for each in dockerfile("COPY")]
    sources = [source for each in copied if "--from" not in each[0] for source in each[:-1]]
    assert {"pyproject.toml", "README.md", "shapray"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    declared = {each.partition("=")[0] for each in dockerfile("ARG")}
    text = "\n".join(dockerfile("FROM") + dockerfile("RUN"))
    assert declared == set(re.findall(r"\$\{([A-Z_]+)\}", text))  # all used, none unknown
    assert int(dockerfile("USER")[-1]) > 0


# --- dashboard -------------------------------------------------------------------------------


def test_the_dashboard_shows_the_metrics_that_are_there() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"\bray_(shapray_\w+)", " ".join(expressions)))
    # Ray adds _total to the names of counters.
    assert {name if name in NAMES else name.removesuffix("_total") for name in shown} == set(NAMES)


def test_the_dashboard_takes_its_data_source_from_a_variable() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    assert {each["type"] for each in dashboard["templating"]["list"]} == {"datasource", "query"}
    panels = dashboard["panels"]
    queries = [each for panel in panels for each in [panel, *panel["targets"]]]
    assert {each["datasource"]["uid"] for each in queries} == {"${datasource}"}
    assert len({panel["id"] for panel in panels}) == len(panels)


# --- all -------------------------------------------------------------------------------------


def test_no_credentials_in_any_file() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    secret = re.compile(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@")
    assert [path.name for path in files if secret.search(path.read_text())] == []
