"""What strangers write never drives a terminal: keys, URIs, notes, captions, reasons, names and
refusals."""

import json
import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from server import serving
from small_captioner import save_captioner

from raycap.cli import main
from raycap.schema import CAPTIONS
from raycap.terminal import lines_of, log_to_stderr, printable, write_out

# A title, a colour, a cursor that goes up, a bell, one byte that begins a sequence (C1), text that
# runs backwards.
ESCAPES = "\x1b]0;pwned\x07\x1b[31m\x1b[2A\x9b31m\x85\u202egnp.\u2066\u2028\u200bx\r\x00\x7f"
HARMFUL = set("\x1b\x07\x9b\x85\u202e\u2066\u2028\u200b\r\x00\x7f")


CONTROLS = ("Cc", "Cs", "Zl", "Zp")


def assert_harmless(text: str) -> None:
    assert text and not HARMFUL & set(text)
    for character in text:
        assert character == "\n" or unicodedata.category(character) not in (
            "Cc",
            "Cs",
            "Zl",
            "Zp",
        ), ascii(character)


@given(st.text())
def test_a_line_is_escaped_and_stays_one(text: str) -> None:
    line = printable(text)
    assert "\n" not in line and all(unicodedata.category(c) not in CONTROLS for c in line)
    assert lines_of(text).count("\n") == text.count("\n")
    if text.isprintable():
        assert line == text


def test_what_is_escaped_can_be_read() -> None:
    assert printable("a\x1b[31m\n\u202e\udcff\x9b") == r"a\x1b[31m\n\u202e\udcff\x9b"
    for harmless in ("größe 犬", "👩\u200d💻", "می\u200cخواهم", "1\u00a0km", r"back\slash"):
        assert printable(harmless) == harmless


def test_a_terminal_without_the_letters_gets_their_numbers() -> None:
    program = "from raycap.terminal import write_out; write_out('犬 \\x1b\\n')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=environment
    )
    assert answer.stdout == b"\\u72ac \\x1b\n"


@pytest.mark.parametrize("how", ["log", "crash", "refusal"])
def test_logs_crashes_and_refusals_are_escaped(how: str) -> None:
    acts = {
        "log": "logging.getLogger('raycap.x').warning('lost: %s', TEXT)",
        "crash": "raise RuntimeError(TEXT)",
        "refusal": "raise UserError(TEXT + chr(10) + 'raycap: all is well')",
    }
    program = (
        "import logging, sys\n"
        "from raycap import cli\n"
        "from raycap.errors import UserError\n"
        f"TEXT = {ESCAPES!r}\n"
        "def act(arguments):\n"
        f"    {acts[how]}\n"
        "    return 0\n"
        "cli._run = act\n"
        "sys.exit(cli.main())\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert_harmless(answer.stderr.decode())
    assert "pwned" in answer.stderr.decode()
    if how == "refusal":
        assert answer.returncode == 2 and "\n  raycap: all is well" in answer.stderr.decode()


def test_a_handler_is_added_once() -> None:
    log_to_stderr()
    before = len(logging.getLogger("raycap").handlers)
    log_to_stderr()
    assert len(logging.getLogger("raycap").handlers) == before


def names() -> list[str]:
    return [f"{ESCAPES.replace(chr(0), '')}{number}.png" for number in range(2)]


def printed_by(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    main(arguments)
    output = capfd.readouterr()
    text = output.out + output.err
    assert_harmless(text)
    return text


def test_photos_and_refusals(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_captioner(tmp_path / "model")
    good, bad = names()
    Image.new("RGB", (60, 48)).save(good, "png")
    Path(bad).write_bytes(b"<html>" + ESCAPES.encode())
    photos = [good, bad, "gone" + good]
    assert "pwned" in printed_by(
        ["caption", *photos, "--model", "model", "--num-captions", "2"], capfd
    )
    assert "pwned" in printed_by(["caption", good, "--model", "model", "--show"], capfd)
    assert "pwned" in printed_by(["caption", "gone" + good, "--model", "model"], capfd)
    assert "pwned" in printed_by(
        ["caption", good, "--model", f"no{ESCAPES.replace(chr(0), '')}"], capfd
    )


def test_captions_of_a_hostile_vocabulary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
    from raycap.decoders import Recurrent
    from raycap.encoders import Pixels
    from raycap.vocabulary import SPECIAL_TOKENS, Vocabulary

    words = Vocabulary((*SPECIAL_TOKENS, *(f"{ESCAPES}{number}" for number in range(5))))
    plan = CaptionerPlan(
        Pixels(size=64), Recurrent(hidden_width=8, embedding_width=8, attention_width=8)
    )
    encoder = plan.encoder.build()
    decoder = plan.decoder.build(len(words), encoder.positions, encoder.width)
    TrainedCaptioner(plan, words, encoder, decoder).save(tmp_path / "model")
    Image.new("RGB", (60, 48)).save(tmp_path / "a.png")
    printed = printed_by(
        ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "model")], capfd
    )
    assert "pwned" in printed and printed.count("\n") == 1


def test_reports_and_evaluations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows, references = [], []
    for key in names():
        row = {
            "key": key,
            "uri": ESCAPES,
            "caption": ESCAPES,
            "status": "success",
            "error_message": "",
        }
        rows.append(
            {**row, "score": -1.0, "alternatives": [], "width": 1, "height": 1, "sha256": ""}
        )
        references.append({"key": key, "path": "x.png", "references": [f"a dog {ESCAPES}"]})
    rows.append(
        {
            **rows[0],
            "key": f"other{ESCAPES}",
            "status": "failed_to_fetch",
            "error_message": ESCAPES,
        }
    )
    table = tmp_path / f"{ESCAPES[:40].replace('/', '')}.parquet".replace("\x00", "")
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), table)
    lines = "".join(json.dumps(line) + "\n" for line in references) + f'{{"broken {ESCAPES}\n'
    (tmp_path / "references.jsonl").write_text(lines)
    flags = ["--references", str(tmp_path / "references.jsonl"), "--source.key-column", "key"]
    out = ["--out", str(tmp_path / "scores.json"), "--evaluate.samples", "100"]
    assert "pwned" in printed_by(["evaluate", str(table), *flags, *out], capfd)
    page = tmp_path / "page.html"
    printed_by(
        ["report", str(table), *flags, "--out", str(page), "--evaluate.samples", "100"], capfd
    )
    text = page.read_text()
    assert not set(text) & set("\x1b\x07\x9b\x85\x00\x7f")


@pytest.mark.slow
def test_a_whole_run_over_hostile_names_servers_and_lists(tmp_path: Path) -> None:
    """`inspect` and `caption` on Ray, as processes: what workers and the driver print."""
    folder = tmp_path / "photos"
    folder.mkdir()
    good, bad = names()
    Image.new("RGB", (60, 48)).save(folder / good, "png")
    shutil.copy(folder / good, folder / f"copy{good}")
    (folder / bad).write_bytes(b"<html>")
    (folder / f"link{good}").symlink_to(f"/nowhere/{ESCAPES[:20]}".replace("\x00", ""))
    with serving() as server:
        urls = [
            server.url("/status?code=404"),
            server.url("/not-http"),
            f"http://{ESCAPES[:12]}/x",
            f"s3://{ESCAPES[:9]}",
        ]
        listed = tmp_path / "list.txt"
        listed.write_text("\n".join([*urls, *urls]))
        for source in (str(folder), str(listed)):
            out = [
                "--out",
                str(tmp_path / "report.json"),
                "--fetch.allow-private",
                "--fetch.retries",
                "0",
            ]
            command = [sys.executable, "-m", "raycap", "inspect", source, *out]
            answer = subprocess.run(
                command, capture_output=True, check=False, cwd=Path(__file__).parent.parent
            )
            assert answer.returncode == 1, answer.stderr.decode()
            assert_harmless(answer.stdout.decode())
            assert not HARMFUL & set(answer.stderr.decode())


def test_printing_leaves_good_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write_out("a\n  b: ü 犬\n\n")
    assert capsys.readouterr().out == "a\n  b: ü 犬\n\n"
