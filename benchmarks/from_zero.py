"""Submit each command as a job to a cluster without nodes, whose autoscaler starts them.

    python benchmarks/from_zero.py
    python benchmarks/from_zero.py --only train tune

The autoscaler is Ray's own fake: its nodes are processes of this machine. Between two jobs the
script waits until the nodes are gone again.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests"))

from heads import autoscaled_head, submit  # type: ignore[import-not-found]  # noqa: E402
from small_captioner import (  # type: ignore[import-not-found]  # noqa: E402
    SENTENCES,
    photos,
    save_captioner,
)

JOBS = REPOSITORY / "jobs"
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
SECONDS_UNTIL_IDLE_NODES_ARE_GONE = 75


def jobs(folder: Path) -> dict[str, list[str]]:
    """The words behind `python` of each job. Paths are absolute: see below."""
    pictures, model, out = photos(folder / "photos", range(24)), folder / "model", folder / "out"
    save_captioner(model)
    names = sorted(path.name for path in pictures.iterdir())
    rows = [f"{pictures / name},{SENTENCES[place % 4]}" for place, name in enumerate(names)]
    table = folder / "photos.csv"
    table.write_text("\n".join(["path,caption", *rows]) + "\n")
    config = yaml.safe_load((REPOSITORY / "configs" / "smoke.yaml").read_text())
    config["source"] = {"kind": "table", "path": str(table), "fractions": [0.5, 0.5, 0]}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "space.yaml").write_text("train.lr: {log_uniform: [1e-3, 1e-2]}\n")
    usual = ["--config", str(folder / "run.yaml"), *LABELS]
    cache = str(folder / "cache")
    small = ["--epochs", "1", "--batch", "8", "--workers.count", "2", "--cache", cache]
    trials = ["--train.epochs", "1", "--train.batch", "8", "--train.cache", cache, "--trials", "2"]
    words: dict[str, list[Any]] = {
        "caption": [f"{JOBS}/caption.py", pictures, "--model", model, "--out", out / "c", *LABELS],
        "extract": [f"{JOBS}/extract.py", *usual, "--out", out / "e"],
        "inspect": ["-m", "raycap", "inspect", pictures, "--out", out / "i.json", *DECODE],
        "evaluate": [
            *[f"{JOBS}/evaluate.py", model, *usual, "--split", "dev"],
            *["--out", out / "s.json", "--cache", cache],
        ],
        "train": [f"{JOBS}/train.py", *usual, *small, "--out", out / "t"],
        "tune": [
            *[f"{JOBS}/tune.py", *usual, *trials, "--space", folder / "space.yaml"],
            *["--out", out / "u"],
        ],
    }
    return {name: [str(word) for word in job] for name, job in words.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[])
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raycap-from-zero-"))
    failed = 0
    try:
        os.environ["PYTHONPATH"] = str(REPOSITORY)
        (folder / "home").mkdir()
        (folder / "out").mkdir()
        with autoscaled_head(folder / "home", TYPES, version=2, idle_minutes=0.75) as cluster:
            for name, words in jobs(folder).items():
                if chosen.only and name not in chosen.only:
                    continue
                started = time.monotonic()
                # The fake's nodes would share one copy of a working directory, and each new node
                # would delete it and make it again, under the feet of the job.
                done = submit(cluster, *words, working_dir=False)
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
