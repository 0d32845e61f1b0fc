"""cluster.yaml, the Kubernetes manifests and the Dockerfile: what can be known of them without a
cloud."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raycap.cli import configure
from raycap.config import load

REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = REPOSITORY / "cluster.yaml"
MANIFESTS = sorted((REPOSITORY / "deploy").glob("*.yaml"))
PINNED = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)[1]

# Fields of KubeRay's ray.io/v1 (ray-operator/apis/ray/v1 of its repository), as far as they are of
# use here.
JOB = {
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
CLUSTER_SPEC = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER = {"upscalingMode", "idleTimeoutSeconds"}
HEAD = {"rayStartParams", "labels", "template"}
WORKER = {*HEAD, "groupName", "replicas", "minReplicas", "maxReplicas"}
POD = {"containers", "volumes", "tolerations"}
CONTAINER = {"name", "image", "resources", "volumeMounts"}


def documents() -> list[Any]:
    return [pytest.param(path, id=path.name) for path in MANIFESTS]


def test_cluster_yaml_is_what_ray_takes() -> None:
    config = yaml.safe_load(CLUSTER.read_text())
    pytest.importorskip("boto3", reason="needs boto3, as `ray up` on AWS does")
    prepared = prepare_config(config)
    validate_config(prepared)
    # Ray's own check lets these pass.
    assert config["provider"]["region"]
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert all(kind.get("min_workers", 0) <= kind["max_workers"] for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]


def test_cluster_yaml_sends_the_whole_package() -> None:
    """A pattern of rsync that does not begin with / fits in every folder: `runs` would leave out
    raycap/runs."""
    tops = {path.name for path in (REPOSITORY / "raycap").parent.iterdir()} & {
        "raycap",
        "jobs",
        "configs",
    }
    excluded = yaml.safe_load(CLUSTER.read_text())["rsync_exclude"]
    assert all(
        re.fullmatch(r"/[\w.]+", pattern) and pattern[1:] not in tops for pattern in excluded
    )


def test_cluster_yaml_mistakes_are_found() -> None:
    config = yaml.safe_load(CLUSTER.read_text())
    config["available_node_types"]["model"]["resource"] = {}
    with pytest.raises(Exception, match="resource"):
        validate_config(config)


def test_one_version_of_ray_everywhere() -> None:
    texts = [CLUSTER, *MANIFESTS, REPOSITORY / "deploy" / "Dockerfile"]
    versions = {
        found
        for text in texts
        for found in re.findall(
            r"(?:ray:|rayVersion: \"|RAY_VERSION=)(\d[\d.]*\d)", text.read_text()
        )
    }
    assert versions == {PINNED}


@pytest.mark.parametrize("path", documents())
def test_manifests_have_the_fields_of_kuberay(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["metadata"]["name"]
    spec = manifest["spec"]
    if manifest["kind"] == "RayJob":
        assert set(spec) <= JOB
        spec = spec["rayClusterSpec"]
    assert set(spec) <= CLUSTER_SPEC
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert spec["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    assert set(spec["headGroupSpec"]) <= HEAD
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert set(container) <= CONTAINER
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            # Ray sizes its work by the limits.
            assert all(
                isinstance(amount, str) for amount in container["resources"]["limits"].values()
            )


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if "entrypoint" in path.read_text()], ids=str
)
def test_the_commands_of_manifests_are_understood(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags, labels and configs in them exist; labels are those of the nodes."""
    spec = yaml.safe_load(path.read_text())["spec"]
    words = shlex.split(spec["entrypoint"])
    python, job, *arguments = (
        shlex.split(words[2].partition(" || ")[0]) if words[0] == "bash" else words
    )
    monkeypatch.chdir(REPOSITORY)
    assert python == "python" and Path(job).exists()
    kind = ["--source", "folder"] if job.endswith("caption.py") else ["--source", "flickr"]
    config, _ = configure(Path(job).stem, [arguments[0], *kind, *arguments[1:]])
    labels = {
        f"{name}={value}"
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
        for name, value in group["labels"].items()
    }
    assert {config.cluster.decode_on, config.cluster.model_on} - {""} <= labels


def test_the_dockerfile() -> None:
    """Every instruction is one, the base is given before it is used, and what is copied is
    there."""
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert {each[0] for each in words} <= {"ARG", "FROM", "COPY", "RUN", "WORKDIR"}
    given = [each[1].partition("=")[0] for each in words if each[0] == "ARG"]
    base = next(number for number, each in enumerate(words) if each[0] == "FROM")
    assert re.findall(r"\$\{(\w+)\}", lines[base]) == given
    assert all(each[0] == "ARG" for each in words[:base])
    for each in words:
        if each[0] == "COPY":
            sources = [word for word in each[1:-1] if not word.startswith("--")]
            assert all((REPOSITORY / source).exists() for source in sources), each


def test_configs_named_in_manifests_load() -> None:
    named = {
        name for path in MANIFESTS for name in re.findall(r"configs/\S+\.yaml", path.read_text())
    }
    assert named
    for name in named:
        load(str(REPOSITORY / name))
