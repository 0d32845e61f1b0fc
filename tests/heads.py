"""Real Ray clusters on this machine, started with `ray start --head`, and jobs for them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
# What the config of an autoscaler must name, and the fake never runs.
COMMANDS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
]
COMMANDS += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
# Ray gives a head 30 seconds to start, which may be too few on a busy machine.
STARTS = 4
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.contextmanager
def head(
    home: Path, *arguments: str, more: Mapping[str, str] | None = None, gcs: int = 0
) -> Iterator[dict[str, str]]:
    """A head with a dashboard; yields the environment variables for submitting jobs to it."""
    port, dashboard, client, agent = free_ports(4)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    }
    # Somebody who has used Ray on this machine before has a token file, and Ray then asks for it.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32, "HOME": str(home)}
    environment["RAY_agent_register_timeout_ms"] = "120000"  # on a busy machine
    # The cluster's `python` is this one, also where its environment was never activated.
    environment["PATH"] = f"{Path(RAY).parent}{os.pathsep}{environment['PATH']}"
    # Paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="raycap-head-", dir="/tmp"))
    command = [RAY, "start", "--head", "--block", f"--port={gcs or port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *arguments]
    for _ in range(STARTS):
        with (home / "head.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment | (more or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None and "will now block" not in (home / "head.log").read_text():
            time.sleep(0.2)
        if process.poll() is None:
            break
        end_session(process.pid)
    try:
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        process.terminate()
        process.wait(60)
        end_session(process.pid)  # nodes of an autoscaler outlive their head
        shutil.rmtree(folder, ignore_errors=True)


def end_session(session: int) -> None:
    """Kill what is left of a session, which is called by its first process."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(entry.name), signal.SIGKILL)


def submit(
    cluster: Mapping[str, str],
    *job: str,
    name: str = "",
    wait: bool = True,
    working_dir: bool = True,
) -> "subprocess.CompletedProcess[str]":
    command = [RAY, "job", "submit"]
    command += ["--working-dir", str(REPOSITORY)] if working_dir else []
    command += [f"--submission-id={name}"] if name else []
    command += [] if wait else ["--no-wait"]
    command += ["--", "python", *job]
    end = time.monotonic() + 240
    while True:
        done = subprocess.run(
            command, env=dict(cluster), capture_output=True, text=True, timeout=600, check=False
        )
        starting = "No available agent" in done.stderr or "Failed to connect to Ray" in done.stderr
        if not starting or time.monotonic() > end:
            return done
        time.sleep(1)


def check_job(cluster: Mapping[str, str], *job: str) -> str:
    """Submit a job that must end well; the answer is what it printed."""
    done = submit(cluster, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def autoscaled_head(
    home: Path, types: Mapping[str, Any], version: int, idle_minutes: float = 1
) -> Iterator[dict[str, str]]:
    """A head without CPUs, with Ray's own fake autoscaler, which starts nodes on this machine."""
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    (gcs,) = free_ports(1)
    provider = {
        # By its name the fake asks for a file that Ray's wheel lacks.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"{get_node_ip_address()}:{gcs}",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": version == 2,
    }
    own = "ray.head.default"  # the fake knows its head by this name
    config = {
        "cluster_name": "raycap-test",
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "provider": provider,
        "available_node_types": {
            own: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **types,
        },
        "head_node_type": own,
        "idle_timeout_minutes": idle_minutes,
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        **{name: [] for name in COMMANDS},
    }
    file = home / "autoscaler.json"
    file.write_text(json.dumps(config))
    more = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": str(version - 1),
    }
    if version == 2:
        more |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_NODE_TYPE_NAME": own}
    small = ["--num-cpus=0", "--object-store-memory=100000000", f"--autoscaling-config={file}"]
    with head(home, *small, more=more, gcs=gcs) as environment:
        yield environment
