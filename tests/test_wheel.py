"""The wheel that is built from the repository captions a photo, without the repository."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_captions_a_photo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*build, "--wheel-dir", tmp_path / "wheels", REPOSITORY], check=True, capture_output=True
    )
    [wheel] = (tmp_path / "wheels").glob("raycap-*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", "--quiet", wheel]
    subprocess.run(install, check=True)
    # Only raycap comes from the new environment. What it depends on is some gigabytes, and is
    # taken from this one. A path in PYTHONPATH is searched for packages only: the .pth file of an
    # editable raycap is not read there.
    program = (
        "import raycap, sys; from raycap.cli import main\n"
        "print(raycap.__file__); sys.exit(main(sys.argv[1:]))"
    )
    command = [python, "-c", program, "caption"]
    command += [REPOSITORY / "samples" / "tennis.jpg", "--precision", "fp32"]
    answer = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    imported_from, caption = answer.stdout.splitlines()
    assert Path(imported_from).is_relative_to(tmp_path / "venv")
    assert caption == "a tennis player is playing with a ball in the air"
