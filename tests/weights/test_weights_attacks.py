"""Files that try to run something: refused by name, and nothing in them runs, is imported or is opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparsegen.weights.checkpoint import open_checkpoint
from tests.weights import hostile
from tests.weights.hostile import group, named, named_by_stack, refused, storage, table, tensor, text

CONTAINERS = {
    "zip": lambda body: hostile.torch_zip(body, hostile.small_storages()),
    "legacy": lambda body: hostile.torch_legacy(body),
}


@pytest.fixture(params=CONTAINERS, ids=str)
def container(request):
    return CONTAINERS[request.param]


# Names that run something, and ways to get at them.

DANGEROUS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("builtins", "open"),
    ("builtins", "type"),
    ("__builtin__", "eval"),
    ("__builtin__", "apply"),
    ("importlib", "import_module"),
    ("runpy", "run_path"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("shutil", "rmtree"),
    ("socket", "socket"),
    ("ctypes", "CDLL"),
    ("webbrowser", "open"),
    ("pty", "spawn"),
    ("code", "interact"),
    ("types", "CodeType"),
    ("copyreg", "_reconstructor"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.jit", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("torch.utils.cpp_extension", "load_inline"),
    ("torch.fx.graph_module", "reduce_graph_module"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy.testing._private.utils", "runstring"),
    ("_codecs", "decode"),
    ("collections", "namedtuple"),
    # Attributes of what is allowed, and foreign names behind allowed prefixes.
    ("collections", "OrderedDict.fromkeys"),
    ("torch", "os.system"),
    ("torch.serialization", "os.system"),
    ("argparse", "Namespace.__init__"),
    ("argparse", "_sys.modules"),
    ("pytorch_lightning", "os.system"),
    ("pytorch_lightning.utilities", "Trainer.fit"),
    ("pytorch_lightning.utilities", "run_it"),
    ("pytorch_lightning..os", "System"),
    ("omegaconf.os", "system"),
    ("lightning_evil", "Thing"),
    ("", "system"),
    ("os", ""),
    ("os\x1b[2J", "system"),
]


@pytest.mark.parametrize(
    ("module", "name"), DANGEROUS, ids=lambda part: part.encode("unicode_escape").decode()
)
def test_dangerous_names_are_refused_by_name(module, name, container, tmp_path):
    shown = f"{'builtins' if module == '__builtin__' else module}.{name}".replace("\x1b", "\\x1b")
    for spelled in (named(module, name), named_by_stack(module, name)):
        message = refused(tmp_path / "x.pth", container(spelled + group(text("touch canary")) + b"R"))
        assert f"the file refers to {shown}, which is not on the list of safe names" in message
        # Naming is enough: it is refused before there is anything to call.
        assert "which is not on the list" in refused(tmp_path / "x.pth", container(spelled))


COMMAND = text("touch canary")
SAFE = named("collections", "OrderedDict")
PLACEHOLDER = named("pytorch_lightning", "Trainer") + b")\x81"
PARAMETER = named("torch.nn.parameter", "Parameter")

ATTACKS = {
    "REDUCE": (named("os", "system") + group(COMMAND) + b"R", "os.system"),
    "REDUCE of a layer": (
        named("torch.nn.modules.linear", "Linear") + group(COMMAND) + b"R",
        "torch.nn.modules.linear.Linear, which is not built",
    ),
    "a function below torch's, called": (
        named("builtins", "getattr")
        + group(named("torch._C", "_VariableFunctionsClass"), text("relu"))
        + b"R"
        + group(COMMAND)
        + b"R",
        "which cannot be called",
    ),
    "NEWOBJ": (named("subprocess", "Popen") + group(COMMAND) + b"\x81", "subprocess.Popen"),
    "NEWOBJ_EX": (named("subprocess", "Popen") + group(COMMAND) + b"}\x92", "subprocess.Popen"),
    "INST": (b"(" + COMMAND + b"ios\nsystem\n", "INST"),
    "OBJ": (b"(" + named("os", "system") + COMMAND + b"o", "os.system"),
    "OBJ with a safe class": (b"(" + SAFE + b"o", "OBJ"),
    "STACK_GLOBAL": (named_by_stack("os", "system") + group(COMMAND) + b"R", "os.system"),
    "STACK_GLOBAL from the memo": (
        text("system") + b"q\x00" + b"0" + text("os") + b"h\x00\x93" + group(COMMAND) + b"R",
        "os.system",
    ),
    "STACK_GLOBAL of numbers": (b"K\x01K\x02\x93", "not strings"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "EXT2": (b"\x83\x01\x00", "EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00", "EXT4"),
    "PERSID": (b"Pos.system\n", "PERSID"),
    "a persistent id of another kind": (group(text("url"), COMMAND) + b"Q", "persistent id"),
    "a persistent id that is a name": (named("torch", "FloatStorage") + b"Q", "persistent id"),
    "calling a string": (COMMAND + b")R", "calls str"),
    "calling a number": (b"K\x01)R", "calls int"),
    "calling a tuple": (b"))R", "calls tuple"),
    "calling a tensor": (tensor(storage("0", 6), (1,), (1,)) + b")R", "calls"),
    "calling a storage type": (named("torch", "FloatStorage") + b")R", "torch.FloatStorage"),
    "calling a dtype": (named("torch", "float32") + b")R", "torch.float32"),
    "calling int": (named("builtins", "int") + group(COMMAND) + b"R", "builtins.int"),
    "calling a placeholder's instance": (PLACEHOLDER + b")R", "Trainer"),
    "arguments that are no tuple": (SAFE + COMMAND + b"R", "as arguments, expected a tuple"),
    "BUILD on a string": (COMMAND + b"}b", "attributes of a str"),
    "BUILD on a list": (b"]}b", "attributes of a list"),
    "BUILD on a name": (SAFE + table({"call": COMMAND}) + b"b", "attributes of a collections.OrderedDict"),
    "BUILD on a function": (
        named("torch._utils", "_rebuild_tensor_v2") + table({"__code__": COMMAND}) + b"b",
        "attributes of a torch._utils._rebuild_tensor_v2",
    ),
    "SETITEM on a string": (COMMAND + b"K\x00K\x01s", "item of a str"),
    "SETITEM on a name": (SAFE + b"K\x00K\x01s", "item of a collections.OrderedDict"),
    "APPEND to a tuple": (b")K\x01a", "appends to a tuple"),
    "APPEND to a name": (SAFE + b"K\x01a", "appends to a collections"),
    "a default factory": (
        named("collections", "defaultdict") + group(named("os", "system")) + b"R",
        "os.system",
    ),
    "bytes in another encoding": (
        named("_codecs", "encode") + group(COMMAND, text("zlib_codec")) + b"R",
        "latin1",
    ),
    "a tensor subclass's own code": (
        named("torch._tensor", "_rebuild_from_type_v2")
        + group(named("os", "system"), named("torch", "Tensor"), group(COMMAND), b"}")
        + b"R",
        "os.system",
    ),
    "a tensor subclass with a builder that builds none": (
        named("torch._tensor", "_rebuild_from_type_v2")
        + group(named("torch", "Size"), named("torch", "Tensor"), b")", b"}")
        + b"R",
        "does not build a plain tensor",
    ),
    "a tensor subclass with a foreign type": (
        named("torch._tensor", "_rebuild_from_type_v2")
        + group(named("torch._utils", "_rebuild_tensor"), named("builtins", "dict"), b")", b"}")
        + b"R",
        "other than a plain tensor",
    ),
    "a parameter of a string": (PARAMETER + group(COMMAND) + b"R", "expected a tensor"),
    "keywords to a plain object": (SAFE + b")" + table({"a": b"K\x01"}) + b"\x92", "keyword arguments"),
    "the next pickle of two": (b"N." + named("os", "system") + group(COMMAND) + b"R", ""),
    "buffers": (b"\x97", "NEXT_BUFFER"),
    "protocol 0": (b"S'touch canary'\n", "STRING"),
    "protocol 0 memo": (b"Np0\ng0\n", "PUT"),
    "an unknown opcode": (b"\xff", "0xff"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_by_every_opcode(attack, container, tmp_path):
    body, expected = ATTACKS[attack]
    assert expected in refused(tmp_path / "x.pth", container(body))


def test_what_is_given_to_a_placeholder_goes_nowhere(tmp_path, monkeypatch):
    """A module of the placeholder's name is there to be imported, and would leave a trace: it is not."""
    trace = tmp_path / "trace"
    package = tmp_path / "path" / "pytorch_lightning"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"open({str(trace)!r}, 'w')\nclass Trainer:\n    def __setstate__(self, s): open({str(trace)!r}, 'w')\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    weight = tensor(storage("0", 6), (6,), (1,))
    state = table({"__class__": COMMAND, "a": named("torch", "float32")})
    body = table(
        {
            "callback": PLACEHOLDER + state + b"b",
            "reduced": named("pytorch_lightning", "Trainer") + group(COMMAND) + b"R" + group(COMMAND) + b"b",
            "keywords": named("pytorch_lightning", "Trainer") + b")" + table({"a": COMMAND}) + b"\x92",
            "filled": PLACEHOLDER + b"(" + COMMAND + b"K\x01u(" + COMMAND + b"e",
            "weight": weight,
        }
    )
    (tmp_path / "x.pth").write_bytes(CONTAINERS["zip"](body))
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["weight"]
        assert checkpoint.placeholders == ("pytorch_lightning.Trainer",)
    assert not trace.exists() and "pytorch_lightning" not in sys.modules
    # The trap works: it is the reader that keeps out of it.
    subprocess.run([sys.executable, "-c", "import pytorch_lightning"], cwd=package.parent, check=True)
    assert trace.exists()


# One process, in which nothing may run: Python itself reports every import, compilation, file and process.
WATCHED = """
import pathlib, sys
from sparsegen.weights import CheckpointError, read_checkpoint

folder = pathlib.Path(sys.argv[1])
allowed = {"open", "mmap.__new__", "builtins.id"}
events, opened, watching = [], [], False

def hook(event, arguments):
    if watching:
        if event == "open":
            opened.append((str(arguments[0]), arguments[1]))
        elif event not in allowed:
            events.append((event, repr(arguments)[:200]))

sys.addaudithook(hook)
files = sorted(folder.glob("*.pth"))
outcomes = {"read": 0, "refused": 0}
for once in range(2):  # The first round imports what reading needs; the second is watched.
    watching = once == 1
    for path in files:
        try:
            with read_checkpoint(path) as checkpoint:
                arrays = [tensor.numpy() for tensor in checkpoint.tensors.values()]
            outcomes["read"] += once
        except CheckpointError:
            outcomes["refused"] += once
watching = False
strange = [entry for entry in opened if not (entry[0].startswith(str(folder)) and entry[1] in ("rb", "r", None))]
print(len(opened) >= len(files), events[:5], strange[:5], outcomes["read"], outcomes["refused"])
"""


def test_nothing_runs_is_imported_or_opened(tmp_path):
    count = 0
    for make in CONTAINERS.values():
        bodies = [body for body, _ in ATTACKS.values()]
        bodies += [named(*names) + group(COMMAND) + b"R" for names in DANGEROUS]
        for body in bodies:
            (tmp_path / f"{count}.pth").write_bytes(make(body))
            count += 1
    (tmp_path / "good.pth").write_bytes(hostile.small_zip())
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.stderr) == (f"True [] [] 1 {count}", "")
    assert not (tmp_path / "canary").exists()


def test_the_command_line_answers_with_a_sentence(tmp_path, capsys):
    from sparsegen.cli import main

    attack = named("os", "system") + group(COMMAND) + b"R"
    files = {
        "attack": (hostile.torch_zip(attack), "os.system"),
        "old attack": (hostile.torch_legacy(attack), "os.system"),
        "cut": (hostile.small_zip()[:-9], "no end record"),
        "header": (hostile.safetensors(b"{nothing"), "header"),
        "nested": (hostile.torch_zip(b"]q\x00h\x00a"), "holds itself"),
    }
    for name, (raw, expected) in files.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(raw)
        assert main(["inspect", str(path)]) == 2
        printed = capsys.readouterr()
        assert path.name in printed.err and expected in " ".join(printed.err.split())
        assert "Traceback" not in printed.err + printed.out
