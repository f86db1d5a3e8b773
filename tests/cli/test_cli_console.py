"""The command line's manners: printing that cannot go out, help at any width, wrong words, progress in logs."""

from __future__ import annotations

import errno
import io
import mmap
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsegen import loading
from sparsegen.cli import COMMANDS, checkpoints, console, editing, history, machine, main, messages, sampling
from sparsegen.cli.streams import Stream
from sparsegen.weights import checkpoint
from tests.networks import random_gaugan, random_labels, repaint

posix = pytest.mark.skipif(sys.platform == "win32", reason="shells and their pipes, as POSIX has them")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a small model and three label maps."""
    rng = np.random.default_rng(2)
    loading.save(random_gaugan(), tmp_path / "net.safetensors")
    labels = random_labels(rng, (32, 64))
    for name in "abc":
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        labels = repaint(rng, labels)
    return tmp_path


EDIT = "edit --model net.safetensors --original a.png --edited b.png --edited c.png -o out.png"


# -- what cannot be printed ------------------------------------------------------------------------------


def shell(folder: Path, line: str) -> tuple[str, str]:
    """stdout and stderr of a line of shell in which `sparsegen` is the command line."""
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("sparsegen", f"'{sys.executable}' -m sparsegen")],
        cwd=folder,
        # unbuffered, a full disk is met by the first write already
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    # on a busy machine, or where kernels are compiled first, there are lines of progress
    return done.stdout, re.sub(r"^(sparsegen: compil.*|.* \(\d+%, \d+ s\))\n", "", done.stderr, flags=re.M)


def painted(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("out*.png"))


full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full here")
CUT = "standard output: No space left on device; what was printed is cut off"


@posix
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{{ sparsegen {EDIT}; echo $? >&2; }} | head -1", "0"),
        (f"{{ sparsegen {EDIT}; echo $? >&2; }} | true", "0"),
        (f"sparsegen {EDIT} >&-; echo $? >&2", "0"),
        (f"sparsegen {EDIT} 2>&-; echo $? >&2", "0"),
        (f"sparsegen {EDIT} <&- >&- 2>&-; echo $? >&2", "0"),
        pytest.param(f"sparsegen {EDIT} >/dev/full; echo $? >&2", f"note: {CUT}\n0", marks=full),
        pytest.param(f"sparsegen {EDIT} 2>/dev/full; echo $? >&2", "0", marks=full),
        pytest.param(f"sparsegen {EDIT} >/dev/full 2>&1; echo $? >&2", "0", marks=full),
    ],
)
def test_where_printing_ends_every_picture_is_written(files: Path, line: str, said: str) -> None:
    assert shell(files, line)[1].strip() == said
    assert painted(files) == ["out-1.png", "out-2.png"]


@full
@pytest.mark.parametrize("words", ["inspect net.safetensors", "backends", "--help", "edit -h", "--version"])
def test_a_command_that_only_prints_has_failed_where_that_is_cut_off(files: Path, words: str) -> None:
    assert shell(files, f"sparsegen {words} >/dev/full; echo $? >&2")[1].strip() == f"error: {CUT}\n1"
    assert shell(files, f"{{ sparsegen {words}; echo $? >&2; }} | true")[1].strip() == "0", "the reader left"


@full
def test_a_mistake_stays_one_where_nothing_can_be_printed(files: Path) -> None:
    assert shell(files, "sparsegen edit 2>/dev/full; echo $?")[0].strip() == "2"


class Failing(io.StringIO):
    """A stream with room for so many writes."""

    def __init__(self, room: int, error: OSError) -> None:
        super().__init__()
        self.room, self.error = room, error

    def write(self, text: str) -> int:
        self.room -= 1
        if self.room < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False),
        (OSError(errno.EINVAL, "Invalid argument"), False),  # a closed pipe on Windows
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
    ],
)
def test_a_stream_writes_nothing_more_once_a_write_has_failed(error: OSError, lost: bool) -> None:
    inner = Failing(1, error)
    stream = Stream(inner)
    stream.write("first ")
    assert stream.failure is None
    assert stream.write("second") == 6
    assert stream.failure is (error if lost else None)
    inner.room = 9
    stream.writelines(["third", "fourth"])
    stream.flush()
    assert inner.getvalue() == "first ", "a gap in what is printed"
    assert not hasattr(stream, "buffer") and not stream.isatty()


# -- help and wrong words --------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal_and_names_types(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = [command] if command else []
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert main([*words, "-h"]) == 0
    assert capsys.readouterr().out == shown
    assert "-h, --help" in shown and "..." not in shown.replace("[ARGS]...", "")
    for odd in ("<class", "list[", "<str>", "<int", "Optional", "None"):
        assert odd not in shown
    if columns >= 40:  # the longest word, an option with its choices, has 34
        assert max(map(len, shown.splitlines())) <= min(columns, 100)


@pytest.mark.parametrize("words", [[], ["--"]])
def test_without_a_command_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    expected = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == expected


def test_options_are_shown_with_the_names_of_their_types(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["edit", "-h"]) == 0
    shown = capsys.readouterr().out
    for option in (
        "--original PATH",
        "--edited PATH",
        "--steps INTEGER",
        "--eta FLOAT",
        "--ram TEXT",
        "--weights float32|float16|bfloat16",
        "--crop HEIGHTxWIDTH",
        "--resize HEIGHTxWIDTH",
    ):
        assert re.search(rf"^  {re.escape(option)}( |$)", shown, flags=re.M)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edit", "(see 'sparsegen edit --help')"),
        ("edit --original a.png", "(see 'sparsegen edit --help')"),
        ("edit --orignal a.png", "--original"),
        ("edit --orignal a.png", "(see 'sparsegen edit --help')"),
        ("edit --threads", "(see 'sparsegen edit --help')"),
        ("demo --threads many", "(see 'sparsegen demo --help')"),
        ("inspect", "(see 'sparsegen inspect --help')"),
        ("convert a -o b c", "(see 'sparsegen convert --help')"),
        ("--versio", "(see 'sparsegen --help')"),
        ("edt", "did you mean 'edit'? (see 'sparsegen --help')"),
        ("insepct net.safetensors", "did you mean 'inspect'?"),
        ("EDIT", "did you mean 'edit'?"),
        ("edit --edited a -o b.png --ram 4", "--ram: '4' has no unit; write 4GB"),
        ("edit --edited a -o b.png --undo much", "--undo: 'much' is not an amount of memory"),
        ("fly", "known: demo, edit, undo, redo, generate, sample, explain"),
        ("sample --count many", "(see 'sparsegen sample --help')"),
        ("undo", "(see 'sparsegen undo --help')"),
        ("redoo --session x", "did you mean 'redo'?"),
    ],
)
def test_wrong_words_point_to_their_commands_help(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


@posix
def test_completion_can_be_shown_installed_and_completes(tmp_path: Path) -> None:
    """In a home of its own; the shell that is completed for is the one that starts it."""

    def run(*words: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sparsegen", *words],
            env={**os.environ, "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = {"_SPARSEGEN_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert run(**asked, COMP_WORDS="sparsegen ed").split() == ["edit"]
    asked["COMP_CWORD"] = "2"
    assert run(**asked, COMP_WORDS="sparsegen edit --preview").split() == ["--preview-every"]
    source = run(_SPARSEGEN_COMPLETE="source_bash")
    assert "_SPARSEGEN_COMPLETE=complete_bash" in source
    assert main(["--show-completion", "-h"]) == 0 and main(["--install-completion", "-h"]) == 0
    detection = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else the shell around these tests
    assert "_SPARSEGEN_COMPLETE=complete_bash" in run("--show-completion", "bash", **detection)
    assert not list(tmp_path.iterdir())
    assert "installed" in run("--install-completion", "bash", **detection)
    assert "sparsegen" in (tmp_path / ".bashrc").read_text()


@full
def test_a_completion_that_is_cut_off_has_failed(tmp_path: Path) -> None:
    line = "export _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1; sparsegen --show-completion bash >/dev/full; echo $?"
    assert shell(tmp_path, line) == ("1\n", f"error: {CUT}\n")


# -- tables, progress, warnings --------------------------------------------------------------------------


def terminal(stream: Any, width: int) -> Any:
    """A console like `console.out` that takes `stream` for a terminal."""
    return type(console.out)(file=stream, force_terminal=True, width=width, highlight=False, markup=False)


ROWS = [
    ("active tiles at 256×512", "279 of 8192 (3.4%)"),
    ("folder", "/a/rather/long/place/" + "x" * 90),
    ("time", "7 ms"),
]


@pytest.mark.parametrize("width", [10, 20, 25, 30, 40, 45, 80, 200])
def test_no_value_of_a_table_is_cut_off(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "out", terminal(stream, width))
    console.print_table("a title that is longer than the terminal is wide", ROWS)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    packed = re.sub(r"\s", "", shown)
    for name, value in ROWS:
        assert name.replace(" ", "") in packed and value.replace(" ", "") in packed
    assert "…" not in shown


def test_a_row_in_a_pipe_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    console.print_table("title", ROWS)
    _, *lines = capsys.readouterr().out.splitlines()
    assert [tuple(re.split(r"  +", line.strip())) for line in lines] == ROWS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_of_progress_every_few_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bars() as start:
        for description in ("original", "b.png"):
            bar = start(description, 20)
            for step in range(20):
                clock[0] += 0.75
                bar(step + 1, f"step {step + 1} of 20")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "original: step 3 of 20 (15%, 2 s)",
        "original: step 10 of 20 (50%, 8 s)",
        "original: step 17 of 20 (85%, 13 s)",
        "b.png: step 4 of 20 (20%, 18 s)",
        "b.png: step 11 of 20 (55%, 23 s)",
        "b.png: step 18 of 20 (90%, 28 s)",
    ]


def test_short_work_has_no_lines_of_progress(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bars() as start:
        bar = start("original", None)
        for step in range(100):
            clock[0] += 0.019
            bar(step, "a layer")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_has_lines_of_progress(
    kind: str, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(console, "err", terminal(stream, 80))
    with console.progress_bars() as start:
        bar = start("original", 20)
        clock[0] += 3
        bar(3, "step 3 of 20")
    assert stream.getvalue() == "original: step 3 of 20 (15%, 3 s)\n"


def test_lines_stand_above_the_bars_of_the_same_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins where the bars were cleared, on stdout as on stderr."""
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    for name in ("out", "err"):
        monkeypatch.setattr(console, name, terminal(stream, 80))
    with console.progress_bars() as start:
        bar = start("original", 20)
        bar(3, "step 3 of 20")
        console.out.print("a result", soft_wrap=True)
        console.print_line("note", "a note")
        console.print_table("a table", [("a row", "its value")])
        bar(4, "step 4 of 20")
    for line in ("a result", "note: a note", "a table", "a row"):
        before, _, after = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).partition(line)
        assert re.search(r"(^|\n|\r|\x1b\[2K) *$", before), line
        assert re.match(r" *(its value *)?\n", after), line
    assert "step 4 of 20" in stream.getvalue()


def test_work_that_cannot_say_how_far_it_is_has_lines_in_a_log(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "FIRST", 0.01)
    reported = threading.Event()
    shown = console.shown
    monkeypatch.setattr(console, "shown", lambda text: (reported.set(), shown(text))[1])
    with console.bar_without_steps("loading s"):
        clock[0] += 9
        assert reported.wait(30)
    assert "loading s: still at it (9 s)" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("columns", ["0", "00"])
@posix
def test_a_terminal_that_says_it_has_no_columns_loses_no_line(columns: str, tmp_path: Path) -> None:
    line = f"export COLUMNS={columns}; sparsegen backends; sparsegen edt"
    printed, said = shell(tmp_path, line)
    assert "numba" in printed and said.startswith("error: unknown command 'edt'")


@pytest.mark.parametrize("name", ["[red]x[/nope]", "\x1b[2Jgone", "line\nbreak"])
def test_names_out_of_files_mean_nothing_in_progress(
    name: str, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with console.progress_bars() as start:
        clock[0] += 9
        start("reading", None)(1, name)
    assert len(capsys.readouterr().err.splitlines()) == 1
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", terminal(stream, 80))
    with console.progress_bars() as start:
        start("reading", 2)(1, name)
    assert "\x1b[2J" not in stream.getvalue()
    assert "[red]x[/nope]" in stream.getvalue() or name != "[red]x[/nope]"


def test_a_warning_is_a_note_without_a_line_of_code(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: Any, **__: Any) -> None:
        warnings.warn("a backend cannot\nrun here", RuntimeWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, "load_bundle", warn)
    monkeypatch.chdir(files)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(EDIT.split()) == 130
    assert capsys.readouterr().err == "note: a backend cannot run here\n"
    assert warnings.showwarning is before


# -- no memory -------------------------------------------------------------------------------------------


def array_error() -> MemoryError:
    try:
        np.empty(1 << 60, np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError("an exbibyte was given")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (array_error(), "not enough memory for 1.00 EiB more"),
        (MemoryError(), "not enough memory;"),
        (MemoryError("compiling kernels takes 268 MB"), "not enough memory: compiling kernels takes 268 MB;"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory;"),
        (RuntimeError("can't start new thread"), "not enough memory;"),
    ],
)
def test_no_memory_is_said_with_the_budget_that_can_be_given(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.chdir(files)
    monkeypatch.setattr(editing, "load_bundle", fail)
    monkeypatch.setattr(messages, "_limit", lambda: None)
    assert main(EDIT.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}") and "--ram 500MB" in line and "--steps" in line
    monkeypatch.setattr(messages, "_limit", lambda: 600_000_000)
    assert main(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ram" not in line, "demo takes none"
    assert "(ulimit -v leaves this process 0.60 GB)" in line


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("undo --session s", "give the process more memory; for diffusion, a budget such as --ram 500MB"),
        ("redo --session s", "give the process more memory; for diffusion, a budget such as --ram 500MB"),
        ("sample -o s.png", "give a smaller --size, or the process more memory"),
        ("warmup", "give the process more memory"),
        ("inspect net.safetensors", "give the process more memory"),
        ("convert net.safetensors -o out.safetensors", "give the process more memory"),
    ],
)
def test_without_memory_only_options_of_the_command_are_advised(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    advice: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.chdir(files)
    (files / "s").touch()
    for module in (history, sampling, machine, checkpoints):
        for name in (
            "get_backend",
            "open_backend",
            "warm_up",
            "load",
            "load_bundle",
            "read_checkpoint",
            "read_parts",
        ):
            monkeypatch.setattr(module, name, fail, raising=False)
    monkeypatch.setattr(messages, "_limit", lambda: None)
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: not enough memory; {advice}\n"


def test_without_memory_no_file_is_called_damaged(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the map of a file, nor by the list of a folder, nor by what is read there."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def nothing(*_: Any, **__: Any) -> None:
        raise MemoryError

    (files / "folder").mkdir()
    for target, name, failing in (
        (mmap, "mmap", fail),
        (checkpoint, "_open", nothing),
        (Path, "iterdir", fail),
        (os, "listdir", fail),
    ):
        given = "folder" if failing is fail and target is not mmap else "net.safetensors"
        with monkeypatch.context() as patch:
            patch.setattr(target, name, failing)
            assert main(["inspect", str(files / given)]) == 2
        assert capsys.readouterr().err.startswith("error: not enough memory")


def test_without_docstrings_the_command_line_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "sparsegen", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "inspect" in done.stdout and not done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v bounds a process on Linux alone")
def test_a_process_that_gets_no_memory_ends_with_one_line(tmp_path: Path) -> None:
    """A limit under which the package can be imported, and not much more."""
    code = """
import resource, sys
from sparsegen.cli import main
from sparsegen.backends import get_backend
get_backend()
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (180 << 20),) * 2)
sys.exit(main(["edit", "--model", "landscape-ddpm", "--original", sys.argv[1], "--edited", sys.argv[2], "-o", "o.png"]))
"""
    from sparsegen.weights import builtin

    known = builtin.get("landscape-ddpm")
    assert known is not None
    example = known.examples[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(example.original), str(example.edits[0].path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: not enough memory") and "--ram" in line and "ulimit -v" in line
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v bounds a process on Linux alone")
@pytest.mark.parametrize("spare", [5, 150])
def test_at_any_limit_a_process_computes_or_ends_with_one_line(tmp_path: Path, spare: int) -> None:
    """MB beside the command line itself: LLVM ends a process, or hangs, where it gets no memory."""
    pytest.importorskip("numba")
    code = """
import resource, sys
from sparsegen.cli import main
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (int(sys.argv[1]) << 20),) * 2)
sys.exit(main(["demo"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(spare)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory")
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


# -- warmup ----------------------------------------------------------------------------------------------


def test_warmup_fails_where_numba_cannot_be_used(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen", "warmup"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: backend 'numba' cannot be used (")
