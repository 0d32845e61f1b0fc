"""Submit each command as a job to a cluster without nodes, whose autoscaler starts them.

    python benchmarks/from_zero.py
    python benchmarks/from_zero.py --only train tune

The autoscaler is Ray's own fake: its nodes are processes of this machine. Between two jobs the
script waits until the nodes are gone again.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests"))

from heads import autoscaled_head, submit  # type: ignore[import-not-found]  # noqa: E402
from small_captioner import photos, save_captioner  # type: ignore[import-not-found]  # noqa: E402

TYPES = {
    name: {
        "resources": {"CPU": 1, "object_store_memory": 100_000_000},
        "labels": {"raycap": name},
        "node_config": {},
        "min_workers": 0,
        "max_workers": count,
    }
    for name, count in (("decode", 2), ("model", 2))
}
DECODE = ["--cluster.decode-on", "raycap=decode"]
LABELS = [*DECODE, "--cluster.model-on", "raycap=model"]
SMOKE = ["--config", "configs/smoke.yaml", "--source.count", "24"]
SECONDS_UNTIL_IDLE_NODES_ARE_GONE = 75


def jobs(folder: Path) -> dict[str, list[str]]:
    """The words behind `python` of each job."""
    pictures, model, out = str(folder / "photos"), str(folder / "model"), folder / "out"
    cache = str(folder / "cache")
    space = folder / "space.yaml"
    space.write_text("train.lr: {log_uniform: [1e-3, 1e-2]}\n")
    small = ["--epochs", "1", "--batch", "8"]
    trials = ["--train.epochs", "1", "--train.batch", "8", "--trials", "2"]
    return {
        "caption": ["jobs/caption.py", pictures, "--model", model, "--out", f"{out}/c", *LABELS],
        "extract": ["jobs/extract.py", *SMOKE, "--out", f"{out}/e", *LABELS],
        "inspect": ["-m", "raycap", "inspect", pictures, "--out", f"{out}/i.json", *DECODE],
        "evaluate": [
            *["jobs/evaluate.py", model, *SMOKE, "--out", f"{out}/s.json", "--cache", cache],
            *LABELS,
        ],
        "train": [
            *["jobs/train.py", *SMOKE, *small, "--out", f"{out}/t", "--cache", cache, *LABELS],
            *["--workers.count", "2"],
        ],
        "tune": [
            *["jobs/tune.py", *SMOKE, *trials, "--space", str(space), "--out", f"{out}/u"],
            *["--train.cache", cache, *LABELS],
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[])
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raycap-from-zero-"))
    failed = 0
    try:
        photos(folder / "photos", range(24))
        save_captioner(folder / "model")
        (folder / "home").mkdir()
        (folder / "out").mkdir()
        with autoscaled_head(folder / "home", TYPES, version=2, idle_minutes=0.75) as cluster:
            for name, words in jobs(folder).items():
                if chosen.only and name not in chosen.only:
                    continue
                started = time.monotonic()
                done = submit(cluster, *words)
                seconds = time.monotonic() - started
                verdict = "ended well" if not done.returncode else "FAILED"
                print(f"{name}: {verdict} after {seconds:.0f} s", flush=True)
                lines = (done.stdout + done.stderr).splitlines()
                shown = lines if done.returncode else [it for it in lines if "waiting" in it]
                print(*(f"    {line}" for line in shown[-40:]), sep="\n", flush=True)
                failed += done.returncode != 0
                time.sleep(SECONDS_UNTIL_IDLE_NODES_ARE_GONE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
