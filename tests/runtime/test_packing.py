"""The packed-weights cache: made once, shared by everyone, mended when damaged, done without where it cannot be."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort
import pytest

from ssruntime import ArtifactError, GenerationConfig
from ssruntime.artifact import DRAFT_GRAPH, VERIFY_GRAPH, read_artifact
from ssruntime.backends.ort import packing
from ssruntime.config import CheckpointDefaults, complete
from ssruntime.engine import load
from tests.runtime.scripted import list_anew, plain_tokens, random_script, write_artifact

SCRIPT: Final = random_script(5, vocab=24, history=True, agreement=0.8)
CONFIG: Final = GenerationConfig(max_new_tokens=30, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=4)
PROMPT: Final = [3, 1, 2]
EXPECTED: Final = plain_tokens(SCRIPT, PROMPT, complete(CONFIG, CheckpointDefaults(), None), 64)[0]
WITNESS: Final = "witness"
"""A file that tests lay into an entry: it is gone once the entry was made anew."""

LOAD_AND_REPORT: Final = """
import json, logging, sys
import ssruntime
from ssruntime import GenerationConfig

warnings = []
logging.getLogger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: warnings.append(record.getMessage())})())
engine = ssruntime.load(sys.argv[1], threads=1)
config = GenerationConfig(max_new_tokens=30, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=4)
print(json.dumps({"packing": engine.backend.packing, "tokens": engine.generate([3, 1, 2], config).token_ids, "warnings": warnings}))
"""

WITHOUT_DISK_CHECK: Final = """
import shutil
shutil.disk_usage = lambda _: type("Usage", (), {"free": 2**50})
"""

BUILD_TOGETHER: Final = """
import sys
from pathlib import Path
import onnxruntime as ort
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL, open_packed

def options():
    print("building", flush=True)
    sys.stdin.readline()
    made = ort.SessionOptions()
    made.graph_optimization_level = OPTIMIZATION_LEVEL
    return made

entry, word = open_packed(read_artifact(Path(sys.argv[1])), verify=False, options=options)
print(word, entry.folder.name, flush=True)
"""

STOP_AFTER: Final = """
import sys
import ssruntime
from ssruntime.backends.ort import packing

step = getattr(packing, sys.argv[2])
def stop(*args):
    step(*args)
    print("stopped", flush=True)
    sys.stdin.read()
setattr(packing, sys.argv[2], stop)
ssruntime.load(sys.argv[1], threads=1)
"""

STOP_IN_EVICTION: Final = """
import shutil, sys
from pathlib import Path
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort import packing

def stop(folder, ignore_errors):
    next(iter(folder.iterdir())).unlink()
    print("stopped", flush=True)
    sys.stdin.read()

shutil.rmtree = stop
packing.discard(read_artifact(Path(sys.argv[1])))
"""

KILL_OFTEN: Final = """
import os, random, signal, sys, time
from pathlib import Path
import onnxruntime as ort
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL, discard, open_packed

artifact = read_artifact(Path(sys.argv[1]))

def options():
    made = ort.SessionOptions()
    made.graph_optimization_level = OPTIMIZATION_LEVEL
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    return made

def start():
    child = os.fork()
    if child == 0:
        open_packed(artifact, verify=False, options=options)
        os._exit(0)
    return child

begun = time.perf_counter()
os.waitpid(start(), 0)
whole = time.perf_counter() - begun
moments = random.Random(1)
for _ in range(50):
    if moments.random() < 0.7:
        discard(artifact)
    child = start()
    time.sleep(moments.uniform(0, whole))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
discard(artifact)
print("done")
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, which is not made yet."""
    folder = tmp_path / "deep" / "cache"
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A scripted artifact of the test's own."""
    return write_artifact(tmp_path / "artifact", SCRIPT)


def entries(cache: Path) -> list[Path]:
    return sorted(p for p in cache.iterdir() if not p.name.startswith("."))


def only_entry(cache: Path) -> Path:
    """Returns the one entry, in a cache that holds nothing else, debris included."""
    (entry,) = cache.iterdir()
    assert {"entry.json", "packed.bin", "packed.onnx"} <= {p.name for p in entry.iterdir()}
    return entry


def opened(folder: Path, *, verify: bool = False) -> str:
    """Loads, checks what is decoded, and returns the packing."""
    with load(folder, threads=1, verify=verify) as engine:
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED
        return engine.backend.packing


def run_child(program: str, *args: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def start_child(program: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def keep_times(path: Path, edit: Callable[[bytes], bytes]) -> None:
    status = path.stat()
    path.write_bytes(edit(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(data: bytes) -> bytes:
    return data[:64] + bytes([data[64] ^ 1]) + data[65:]


# One entry, made once


def test_the_second_load_uses_what_the_first_made(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert opened(artifact) == "shared"
    assert cache.stat().st_mode & 0o777 == 0o700
    entry = only_entry(cache)
    (entry / WITNESS).touch()
    assert opened(artifact) == "shared"
    assert opened(artifact, verify=True) == "shared"
    assert (only_entry(cache) / WITNESS).exists()
    assert not caplog.records


def test_another_process_and_a_copy_of_the_artifact_use_it_too(cache: Path, artifact: Path, tmp_path: Path) -> None:
    opened(artifact)
    (only_entry(cache) / WITNESS).touch()
    copy = write_artifact(tmp_path / "copy", SCRIPT, name="another name")
    assert json.loads(run_child(LOAD_AND_REPORT, copy).stdout) == {"packing": "shared", "tokens": EXPECTED, "warnings": []}
    assert (only_entry(cache) / WITNESS).exists()


def test_the_packed_file_holds_every_weight_of_the_graphs(cache: Path, artifact: Path) -> None:
    opened(artifact)
    packed = onnx.load(only_entry(cache) / "packed.onnx", load_external_data=False)
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in packed.graph.initializer if t.external_data}
    assert {"table", "identity"} <= outside.keys()
    assert any(k.startswith("prepacked") for k in outside["identity"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SSTOOL_CACHE_DIR": "/named", "XDG_CACHE_HOME": "/xdg"}, "/named"),
        ({"SSTOOL_CACHE_DIR": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/sstool"),
        ({"SSTOOL_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/house"}, "/house/.cache/sstool"),
    ],
)
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], expected: str) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert packing.cache_folder() == Path(expected)


def test_a_relative_cache_folder_is_taken_from_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "here")
    assert packing.cache_folder() == tmp_path / "here"


# Keys


def test_the_key_is_that_of_the_host_and_the_digests(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = packing._key(read_artifact(artifact))
    assert packing._key(read_artifact(artifact)) == original
    assert packing._key(read_artifact(write_artifact(tmp_path / "other", random_script(6, vocab=24, history=True)))) != original
    keys = {original}
    for target, value in {f"{packing.__name__}.ort.__version__": "9.9", f"{packing.__name__}.cpu_features": lambda: "abacus"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            keys.add(packing._key(read_artifact(artifact)))
    model = onnx.load(artifact / VERIFY_GRAPH, load_external_data=False)
    model.doc_string = "changed"
    (artifact / VERIFY_GRAPH).write_bytes(model.SerializeToString())
    list_anew(artifact)
    keys.add(packing._key(read_artifact(artifact)))
    assert len(keys) == 4


def test_another_onnxruntime_makes_another_entry(cache: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(artifact)
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    assert opened(artifact) == "shared"
    assert len(entries(cache)) == 2


# Damage


DAMAGE: Final[dict[str, Callable[[Path], object]]] = {
    "data cut": lambda e: keep_times(e / "packed.bin", lambda b: b[: len(b) // 2]),
    "data longer": lambda e: keep_times(e / "packed.bin", lambda b: b + b"\0"),
    "data touched": lambda e: os.utime(e / "packed.bin", ns=(1, 1)),
    "data missing": lambda e: (e / "packed.bin").unlink(),
    "graph cut": lambda e: keep_times(e / "packed.onnx", lambda b: b[: len(b) // 2]),
    "graph flipped": lambda e: keep_times(e / "packed.onnx", flipped),
    "graph missing": lambda e: (e / "packed.onnx").unlink(),
    "entry cut": lambda e: keep_times(e / "entry.json", lambda b: b[: len(b) // 2]),
    "entry a list": lambda e: (e / "entry.json").write_text("[]"),
    "entry of another form": lambda e: (e / "entry.json").write_text('{"graph_sha256": 1}'),
    "entry not text": lambda e: (e / "entry.json").write_bytes(b"\xff\xfe\x00"),
    "entry missing": lambda e: (e / "entry.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(cache: Path, artifact: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    opened(artifact)
    (only_entry(cache) / WITNESS).touch()
    DAMAGE[damage](only_entry(cache))
    assert opened(artifact) == "shared"
    assert not (only_entry(cache) / WITNESS).exists()
    assert opened(artifact, verify=True) == "shared"
    assert not caplog.records


def test_a_file_in_the_place_of_the_entry_is_replaced(cache: Path, artifact: Path) -> None:
    opened(artifact)
    entry = only_entry(cache)
    packing.discard(read_artifact(artifact))
    entry.write_text("what is this?")
    assert opened(artifact) == "shared"
    assert (cache / entry.name / "packed.bin").exists()


def test_a_flipped_byte_is_found_when_verifying(cache: Path, artifact: Path) -> None:
    opened(artifact)
    entry = only_entry(cache)
    (entry / WITNESS).touch()
    keep_times(entry / "packed.bin", flipped)
    with load(artifact, threads=1):  # not hashed, so not found: that is what `verify` is for
        assert (only_entry(cache) / WITNESS).exists()
    assert opened(artifact, verify=True) == "shared"
    assert not (only_entry(cache) / WITNESS).exists()


# Several processes, and kills


@pytest.mark.parametrize("together", [True, False])
def test_two_processes_that_build_at_once_both_succeed(cache: Path, artifact: Path, together: bool) -> None:
    first, second = children = [start_child(BUILD_TOGETHER, artifact) for _ in range(2)]
    try:
        assert [line_of(c) for c in children] == ["building", "building"]
        assert len(list(cache.glob(".pack.*"))) == 2
        for child in children if together else [first]:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        ends = [line_of(first)]
        (cache / ends[0].removeprefix("shared ") / WITNESS).touch()
        ends.append(second.communicate(None if together else "\n", timeout=60)[0].strip())
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert ends == [f"shared {only_entry(cache).name}"] * 2
    assert (only_entry(cache) / WITNESS).exists()  # the second took the first's
    assert opened(artifact, verify=True) == "shared"


@pytest.mark.parametrize("step", ["_prepare_root", "_pack", "sync_tree", "_evict"])
def test_a_kill_while_packing_stops_nobody(cache: Path, artifact: Path, step: str) -> None:
    opened(artifact)
    DAMAGE["data cut"](only_entry(cache))  # so that the child has something to put out of the way
    with start_child(STOP_AFTER, artifact, step) as child:
        try:
            assert line_of(child) == "stopped"
        finally:
            child.kill()
    assert opened(artifact) == "shared"
    assert only_entry(cache)


def test_kills_at_random_moments_leave_nothing(cache: Path, artifact: Path) -> None:
    assert run_child(KILL_OFTEN, artifact).stdout == "done\n"
    assert entries(cache) == []
    assert opened(artifact) == "shared"
    assert opened(artifact, verify=True) == "shared"
    assert only_entry(cache)


def test_a_kill_while_evicting_another_entry_leaves_nothing(cache: Path, artifact: Path, tmp_path: Path) -> None:
    opened(artifact)
    with start_child(STOP_IN_EVICTION, artifact) as child:
        try:
            assert line_of(child) == "stopped"
        finally:
            child.kill()
    (debris,) = cache.iterdir()
    assert debris.name.startswith(".pack.")
    (other,) = artifacts(tmp_path, 1)
    load(other, threads=1).close()
    assert only_entry(cache) == entry_of(cache, other)


# Places where there can be no cache


def report_in(mount: str, folder: Path, artifact: Path, program: str) -> dict[str, object]:
    """Runs the program with its cache on a small file system that only it sees; skips where none can be mounted."""
    folder.mkdir()
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", f'mount -t tmpfs -o {mount} tmpfs "$0" && exec "$@"', str(folder))
    try:
        probe = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("this system has no unshare, to mount a small file system with")
    if probe.returncode:
        pytest.skip(f"a small file system cannot be mounted: {probe.stderr.strip()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSTOOL_CACHE_DIR", str(folder))
        report: dict[str, object] = json.loads(run_child(program, artifact, prefix=prefix).stdout)
    return report


@pytest.mark.parametrize(
    ("mount", "program", "why"),
    [
        ("size=1m,mode=700", LOAD_AND_REPORT, "MiB free"),
        ("size=16k,mode=700", WITHOUT_DISK_CHECK + LOAD_AND_REPORT, ""),
        ("size=4k,mode=700", WITHOUT_DISK_CHECK + LOAD_AND_REPORT, ""),
        ("size=64m,mode=700,nr_inodes=3", LOAD_AND_REPORT, ""),
        ("size=64m,mode=700,ro", LOAD_AND_REPORT, "Read-only file system"),
    ],
)
def test_a_full_or_read_only_disk_means_one_warning_and_private_packing(
    tmp_path: Path, artifact: Path, mount: str, program: str, why: str
) -> None:
    report = report_in(mount, tmp_path / "small", artifact, program)
    assert report["tokens"] == EXPECTED
    assert str(report["packing"]).startswith("private (")
    assert why in str(report["packing"])
    warnings = report["warnings"]
    assert isinstance(warnings, list)
    (warning,) = warnings
    assert "packed privately" in warning
    assert "SSTOOL_CACHE_DIR" in warning
    assert "\n" not in warning


def assert_private(artifact: Path, caplog: pytest.LogCaptureFixture, why: str) -> None:
    assert opened(artifact) == f"private ({why})"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert why in record.getMessage()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert_private(artifact, caplog, f"{cache} can be written by others")
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, 12345, 12345)
    assert_private(artifact, caplog, f"{cache} can be written by others")


def test_a_folder_that_cannot_be_written_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    assert_private(artifact, caplog, "Permission denied")


def test_a_file_where_the_folder_should_be(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    assert_private(artifact, caplog, "File exists")


def test_an_entry_that_goes_away_before_it_is_mapped(
    cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(artifact)
    read = packing._read

    def read_and_lose(folder: Path, *args: object, **settings: bool) -> object:
        entry = read(folder, *args, **settings)  # type: ignore[arg-type]
        packing._evict(folder)
        return entry

    monkeypatch.setattr(packing, "_read", read_and_lose)
    assert opened(artifact).startswith("private (")
    (record,) = caplog.records
    assert "packing privately" in record.getMessage()
    assert list(cache.iterdir()) == []


# Eviction


def artifacts(tmp_path: Path, number: int) -> list[Path]:
    return [write_artifact(tmp_path / f"artifact{i}", random_script(100 + i, vocab=24)) for i in range(number)]


def entry_of(cache: Path, folder: Path) -> Path:
    return cache / packing._key(read_artifact(folder))


def size_of(entry: Path) -> int:
    return sum(p.stat().st_size for p in entry.iterdir())


def test_the_least_recently_used_goes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *older, newest = artifacts(tmp_path, 4)
    for age, folder in enumerate(older):
        load(folder, threads=1).close()
        os.utime(entry_of(cache, folder) / "entry.json", (1000 + age, 1000 + age))
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", str(3.5 * size_of(entry_of(cache, older[0])) / 1e9))
    load(older[0], threads=1).close()  # made first, but used now
    load(newest, threads=1).close()
    assert entries(cache) == sorted(entry_of(cache, folder) for folder in (older[0], older[2], newest))


def test_the_entry_in_use_stays_whatever_the_limit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", "0")
    for folder in artifacts(tmp_path, 2):
        with load(folder, threads=1) as engine:
            assert engine.backend.packing == "shared"
        assert only_entry(cache) == entry_of(cache, folder)


@pytest.mark.parametrize("limit", ["much", "nan", "-1"])
def test_a_limit_that_is_no_size_is_named_once_and_evicts_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    first, second = artifacts(tmp_path, 2)
    load(first, threads=1).close()
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", limit)
    load(second, threads=1).close()
    assert len(entries(cache)) == 2
    (record,) = caplog.records
    assert f"SSTOOL_CACHE_MAX_GB is not a number of 0 or more: {limit!r}" in record.getMessage()


def test_an_evicted_entry_that_is_mapped_goes_on_working(
    cache: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", "0")
    with load(artifact, threads=1, max_sequences=2) as engine:
        (other,) = artifacts(tmp_path, 1)
        load(other, threads=1).close()
        assert not entry_of(cache, artifact).exists()
        held = engine.stream(PROMPT, CONFIG)  # so that the next request makes a cache that never ran before
        tokens = list(next(held).token_ids)
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED
        assert tokens + [t for chunk in held for t in chunk.token_ids] == EXPECTED


def test_discard_removes_the_one_entry_and_minds_none(cache: Path, artifact: Path, tmp_path: Path) -> None:
    packing.discard(read_artifact(artifact))  # there is not even a cache
    (other,) = artifacts(tmp_path, 1)
    opened(artifact)
    load(other, threads=1).close()
    for _ in range(2):
        packing.discard(read_artifact(artifact))
        assert only_entry(cache) == entry_of(cache, other)
    assert opened(artifact) == "shared"


# Graphs that do not fit


def edit_draft(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / DRAFT_GRAPH, load_external_data=False)
    edit(model)
    (folder / DRAFT_GRAPH).write_bytes(model.SerializeToString())
    list_anew(folder)


def record_of(model: onnx.ModelProto, tensor: str, key: str) -> onnx.StringStringEntryProto:
    return next(e for t in model.graph.initializer if t.name == tensor for e in t.external_data if e.key == key)


def refused(folder: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        load(folder, threads=1)
    assert caught.value.hint == "export the model again"
    return caught.value


def move(model: onnx.ModelProto) -> None:
    record_of(model, "identity", "offset").value = "0"


def rename(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "identity").name = "stranger"
    for node in model.graph.node:
        node.input[:] = ["stranger" if i == "identity" else i for i in node.input]


def reshape(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "table").dims[:] = [24, 240]


@pytest.mark.parametrize(("edit", "weight"), [(move, "identity"), (rename, "stranger"), (reshape, "table")])
@pytest.mark.usefixtures("cache")
def test_a_draft_whose_weights_are_not_the_verify_graphs_is_refused(
    artifact: Path, edit: Callable[[onnx.ModelProto], None], weight: str
) -> None:
    edit_draft(artifact, edit)
    assert f"draft.onnx: weight {weight!r} is not the verify graph's" in refused(artifact).message
    with load(artifact, threads=1, draft=False) as engine:
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED


@pytest.mark.usefixtures("cache")
def test_graphs_that_are_none_are_refused_by_name(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in (DRAFT_GRAPH, VERIFY_GRAPH):
        (artifact / name).write_bytes(b"\x0b" + (artifact / name).read_bytes()[1:])
        list_anew(artifact)
        assert name in refused(artifact).message
    assert capfd.readouterr().out == ""
