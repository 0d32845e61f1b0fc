"""The log of a training run, read while it is written."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.storage import RunFolder, training_log
from raycap.storage.training_log import METRICS, LogReader, RunLog, read_epochs, read_log

act = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 200)),
    st.tuples(st.just("forget after"), st.integers(0, 12)),
    st.tuples(st.just("look"), st.just(0)),
)


@given(st.lists(act, max_size=40))
def test_a_reader_gives_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    folder = RunFolder(str(tmp_path_factory.mktemp("run")))
    log, step, seen = RunLog(folder), 0, 0
    log.add({"kind": "start", "step": 0})
    reader, seen = LogReader(folder), 1
    for what, number in [*acts, ("look", 0)]:
        if what == "add":
            step += 1
            log.add({"kind": "step", "step": step, "text": "é\u2028" * number})
        elif what == "forget after":
            step = min(step, number)
            log.forget_after(step, epochs=0)
        else:
            lines = read_log(folder / METRICS)
            assert reader.new_lines() == lines[min(seen, len(lines)) :]
            seen = len(lines)


def test_a_reader_does_not_read_again_what_it_has_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path))
    log = RunLog(folder)
    for step in range(1000):
        log.add({"kind": "epoch" if step % 100 == 0 else "step", "step": step})
    reader = LogReader(folder)
    read, decode = [], json.loads

    def counted(line: bytes) -> object:
        read.append(line)
        return decode(line)

    log.add({"kind": "step", "step": 1000})
    (tmp_path / METRICS).open("a").write('{"kind": "st')  # it is being written
    with monkeypatch.context() as patch:
        patch.setattr(training_log.json, "loads", counted)
        assert [line["step"] for line in reader.new_lines()] == [1000]
        assert reader.new_lines() == []
    assert len(read) == 1
    assert [line["step"] for line in read_epochs(folder / METRICS)] == list(range(0, 1000, 100))
