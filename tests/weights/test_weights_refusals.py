"""Files and folders that people take for checkpoints: refused in their owner's words, with what to do about it."""

from __future__ import annotations

import shutil
import warnings
import zipfile

import numpy as np
import pytest

from sparsegen.weights import CheckpointError, identify, read_checkpoint
from tests.weights import hostile

ATTACK = "It may be an attack"


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isascii() and "\n" not in message
    assert message.endswith(".") and ATTACK not in message
    return message


@pytest.fixture
def checkpoint(tmp_path):
    """A file of torch.save."""
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1000)}, tmp_path / "net_G.pth")
    return tmp_path / "net_G.pth"


def packed(source, path, method, *, folders=False, root=None):
    """The entries of the zip `source`, packed again as a zip tool does."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", method) as new:
        top = old.namelist()[0].partition("/")[0] + "/"
        kept = top if root is None else root
        if folders:
            for folder in (kept, f"{kept}data/", f"{kept}.data/"):
                new.writestr(zipfile.ZipInfo(folder), b"")
        for name in old.namelist():
            new.writestr(kept + name.removeprefix(top), old.read(name), method)
    return path


# Archives.


@pytest.mark.torch
@pytest.mark.parametrize("folders", [False, True])
def test_archives_that_a_zip_tool_stored_are_read(folders, checkpoint, tmp_path):
    path = packed(checkpoint, tmp_path / "again.pth", zipfile.ZIP_STORED, folders=folders)
    with read_checkpoint(path) as found:
        assert np.array_equal(found.tensors["w"].numpy(), [[0, 1, 2], [3, 4, 5]])
        assert np.array_equal(found.tensors["b"].numpy(), np.ones(1000))


@pytest.mark.torch
@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP's zip")
def test_the_advice_to_pack_again_works(checkpoint, tmp_path):
    import subprocess

    with zipfile.ZipFile(checkpoint) as file:
        file.extractall(tmp_path / "out")
    subprocess.run(["zip", "-q", "-0", "-r", "again.pth", "net_G"], cwd=tmp_path / "out", check=True)
    with read_checkpoint(tmp_path / "out" / "again.pth") as found:
        assert np.array_equal(found.tensors["w"].numpy(), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.torch
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("folders", [False, True])
def test_archives_that_were_compressed(method, folders, checkpoint, tmp_path):
    message = refusal(packed(checkpoint, tmp_path / "again.pth", method, folders=folders))
    assert "is a torch.save archive that was packed again, compressed" in message
    assert "zip -0 -r" in message


@pytest.mark.torch
@pytest.mark.parametrize("root", ["", "backup/net_G/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_without_their_one_folder(root, method, checkpoint, tmp_path):
    message = refusal(packed(checkpoint, tmp_path / "again.pth", method, root=root))
    assert "is not in the archive's one folder" in message and "zip -0 -r" in message


@pytest.mark.torch
def test_torchscript_archives(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what people have
        torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "traced.pt"))
        torch.jit.script(network).save(str(tmp_path / "scripted.pt"))
    with zipfile.ZipFile(tmp_path / "traced.pt") as file:
        assert any(entry.compress_type for entry in file.infolist())
    for name in ("traced.pt", "scripted.pt"):
        message = refusal(tmp_path / name)
        assert "is a TorchScript archive" in message and "torch.jit.load(path).state_dict()" in message
        assert "compressed" not in message


@pytest.mark.torch
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inside", ["net_G.pth", "folder/net_G.pth", "a/b/c.safetensors", "größer/net.ckpt"])
def test_a_zip_around_a_checkpoint(method, inside, checkpoint, tmp_path):
    with zipfile.ZipFile(tmp_path / "download.zip", "w", method) as file:
        file.write(checkpoint, inside)
        file.writestr("__MACOSX/._" + inside, b"x")
        file.writestr("README.txt", b"x")
    message = refusal(tmp_path / "download.zip")
    assert "is a zip archive that holds " in message and inside.rpartition("/")[2] in message
    assert "Unpack it, and give the file in it" in message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_archives(save, tmp_path):
    save(tmp_path / "weights.npz", w=np.ones(3), **{"layer/b": np.ones(2)})
    assert "is a NumPy archive (.npz)" in refusal(tmp_path / "weights.npz")


def test_other_archives(tmp_path):
    cases = {
        "model.weights.h5": "is a Keras archive",
        "serialized_exported_program.json": "is an archive of torch.export",
        "model/archive_format": "is an archive of torch.export",
        "word/document.xml": "without data.pkl, so torch.save did not write it: it holds word/document.xml",
    }
    for name, expected in cases.items():
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
            file.writestr(name, b"x")
        assert expected in refusal(tmp_path / "other.zip")


# Folders and their pieces.


@pytest.mark.torch
@pytest.mark.parametrize("inner", [True, False])
def test_an_unpacked_checkpoint(inner, checkpoint, tmp_path):
    with zipfile.ZipFile(checkpoint) as file:
        file.extractall(tmp_path / "out")
    folder = tmp_path / "out" / "net_G" if inner else tmp_path / "out"
    message = refusal(folder)
    assert "is a torch.save archive that was unpacked into a folder" in message and "zip -0 -r" in message
    message = refusal(tmp_path / "out" / "net_G" / "data.pkl")
    assert "is the data.pkl of a torch.save archive" in message and "zip -0 -r" in message


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_data_pkl_of_every_protocol(protocol, tmp_path):
    torch = pytest.importorskip("torch")
    state = {"epoch": 3, "model": {f"layer{i}.weight": torch.ones(2) for i in range(100)}}
    torch.save(state, tmp_path / "x.pth", pickle_protocol=protocol)
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        (tmp_path / "data.pkl").write_bytes(file.read("x/data.pkl"))
    assert "is the data.pkl of a torch.save archive" in refusal(tmp_path / "data.pkl")


def test_a_distributed_checkpoint(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    assert "distributed checkpoint" in refusal(tmp_path)


# Whole models.


class Generator:
    """A stand-in for somebody's class."""


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_models_pickled_whole(as_zip, tmp_path):
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.ReLU()), Generator()]
    layers += [torch.optim.Adam([torch.ones(2)])]
    for whole in [*layers, {"model": torch.nn.ReLU()}, {"epoch": 3, "net": torch.nn.Linear(2, 2)}]:
        torch.save(whole, tmp_path / "whole.pth", _use_new_zipfile_serialization=as_zip)
        assert "state_dict()" in refusal(tmp_path / "whole.pth")


@pytest.mark.torch
@pytest.mark.parametrize("value", ["text", 3, None, [1, 2], (), b"bytes"])
def test_files_without_tensors(value, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(value, tmp_path / "x.pth")
    assert "no tensors, expected a dict of tensors" in refusal(tmp_path / "x.pth")


# Names.

RUN = [
    *(
        ("os", "system"),
        ("posix", "popen"),
        ("subprocess", "run"),
        ("builtins", "eval"),
        ("builtins", "exec"),
    ),
    *(
        ("__builtin__", "execfile"),
        ("builtins", "getattr"),
        ("builtins", "compile"),
        ("importlib", "import_module"),
    ),
    *(("pickle", "loads"), ("_pickle", "Unpickler"), ("marshal", "loads"), ("types", "CodeType")),
    *(("types", "FunctionType"), ("runpy", "run_path"), ("shutil", "rmtree"), ("ctypes", "CDLL")),
    *(
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("operator", "methodcaller"),
    ),
    *(("torch.jit._serialization", "load"), ("numpy", "load"), ("code", "InteractiveInterpreter")),
    *(("commands", "getoutput"), ("multiprocessing.util", "spawnv_passfds"), ("yaml", "unsafe_load")),
]
STRANGE = [
    *(("mypackage.nets", "Generator"), ("__main__", "Config"), ("models.models", "SPADEGenerator")),
    *(("torch.nn.quantized", "Linear"), ("torch.nn.parallel.data_parallel", "DataParallel")),
    *(("collections", "namedtuple"), ("pandas.core.frame", "DataFrame"), ("mypackage", "make_model")),
    *(
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("functools", "partial"),
    ),
    *(("builtins", "type"), ("builtins", "print"), ("operator", "add"), ("copyreg", "_reconstructor")),
    *(("osmium", "System"), ("picklebot", "Model"), ("codecs", "lookup"), ("numpy", "add"), ("", "x")),
]


@pytest.mark.parametrize(("module", "name"), RUN + STRANGE)
def test_an_attack_is_said_only_of_names_that_run_something(module, name, tmp_path):
    body = hostile.table({"x": hostile.named(module, name) + b")R"})
    (tmp_path / "x.pth").write_bytes(hostile.torch_zip(body))
    with pytest.raises(CheckpointError, match="which is not on the list of safe names") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert (ATTACK in str(caught.value)) == ((module, name) in RUN)
    # Whatever it is, the owner hears what to do.
    assert str(caught.value).count(". ") >= 1


@pytest.mark.parametrize(("module", "name"), STRANGE[:5])
def test_classes_are_answered_with_state_dict(module, name, tmp_path):
    body = hostile.named(module, name) + b")\x81" + hostile.table({}) + b"b"
    (tmp_path / "x.pth").write_bytes(hostile.torch_zip(body))
    assert "save its model.state_dict() instead" in refusal(tmp_path / "x.pth")


# Safetensors.

METADATA = {
    "a number": ({"epoch": 3}, "holds the number 3 as 'epoch', expected a string"),
    "null": ({"epoch": None}, "holds null as 'epoch'"),
    "a truth": ({"done": True}, "holds true as 'done'"),
    "a list": ({"sizes": [1]}, "holds a list as 'sizes'"),
    "an object": ({"a": {"b": "c"}}, "holds an object as 'a'"),
    "one of several": ({"a": "b", "c": 1.5}, "holds the number 1.5 as 'c'"),
    "metadata that is a list": (["a"], "is a list, expected an object of strings"),
    "metadata that is text": ("a", "is a string, expected an object of strings"),
    "metadata that is a number": (3, "is the number 3, expected an object of strings"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_is_no_text(case, tmp_path):
    metadata, expected = METADATA[case]
    header = {"__metadata__": metadata, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    (tmp_path / "x.safetensors").write_bytes(hostile.safetensors(header, b"1234"))
    message = refusal(tmp_path / "x.safetensors")
    assert f"__metadata__: {expected}" in message and "metadata of strings" in message


# Models that lie beside a generator.


def encoder(prefix: str = ""):
    torch = pytest.importorskip("torch")
    norm = torch.nn.utils.spectral_norm
    layers = {
        f"layer{i}": torch.nn.Sequential(
            norm(torch.nn.Conv2d(3, 3, 3, bias=False)), torch.nn.InstanceNorm2d(3)
        )
        for i in range(1, 7)
    }
    layers |= {"fc_mu": torch.nn.Linear(4, 2), "fc_var": torch.nn.Linear(4, 2)}
    return {prefix + name: value for name, value in torch.nn.ModuleDict(layers).state_dict().items()}


def discriminator(prefix: str = "", count: int = 2):
    torch = pytest.importorskip("torch")
    norm = torch.nn.utils.spectral_norm

    def one():
        convolution = torch.nn.Sequential(
            norm(torch.nn.Conv2d(3, 3, 4, bias=False)), torch.nn.InstanceNorm2d(3)
        )
        return torch.nn.ModuleDict(
            {
                "model0": torch.nn.Sequential(torch.nn.Conv2d(3, 3, 4), torch.nn.LeakyReLU(0.2)),
                "model1": torch.nn.Sequential(convolution, torch.nn.LeakyReLU(0.2)),
                "model2": torch.nn.Sequential(torch.nn.Conv2d(3, 1, 4)),
            }
        )

    whole = torch.nn.ModuleDict({f"discriminator_{i}": one() for i in range(count)})
    return {prefix + name: value for name, value in whole.state_dict().items()}


@pytest.mark.torch
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (encoder, "encoder"),
        (discriminator, "discriminator"),
        (lambda p: discriminator(p, 1), "discriminator"),
    ],
)
def test_encoders_and_discriminators_are_named(make, name, prefix, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(make(prefix), tmp_path / "latest_net_X.pth")
    with (
        read_checkpoint(tmp_path / "latest_net_X.pth") as found,
        pytest.raises(
            CheckpointError, match=rf"latest_net_X\.pth: holds the {name} of a SPADE model"
        ) as caught,
    ):
        identify(found)
    assert "latest_net_G.pth" in str(caught.value)


# Element types that are not converted.


@pytest.mark.torch
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_networks_of_float8_name_their_tensors(form, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from sparsegen.weights import convert
    from tests.weights.test_weights_keymap import as_sige, parameter_shapes, parameters

    state = {name: torch.from_numpy(np.array(value)) for name, value in as_sige(parameters()).items()}
    for name in ("up_0.conv_0.weight", "up_1.conv_1.weight"):
        state[name] = state[name].to(torch.float8_e4m3fn)
    state["up_2.conv_1.bias"] = state["up_2.conv_1.bias"].to(torch.float8_e5m2)
    path = tmp_path / f"eight.{form}"
    if form == "pth":
        state["up_3.conv_1.bias"] = torch.empty_like(state["up_3.conv_1.bias"], device="meta")
        torch.save(state, path)
    else:
        save_file(state, path)
    with read_checkpoint(path) as found:
        family, config = identify(found)
        with pytest.raises(CheckpointError, match=r"unreadable \((3|4)\): ") as caught:
            convert(family, found, parameter_shapes(config))
    message = str(caught.value)
    assert "up_0.conv_0.weight (has the element type float8_e4m3fn" in message
    assert "up_2.conv_1.bias (has the element type float8_e5m2" in message
    assert ("up_3.conv_1.bias (is a tensor of the meta device" in message) == (form == "pth")
    assert "mis-shaped" not in message and "as float16, bfloat16 or float32" in message


@pytest.mark.torch
def test_unreadable_tensors_that_no_layer_needs_do_no_harm(tmp_path):
    torch = pytest.importorskip("torch")
    from sparsegen.weights import convert
    from tests.weights.test_weights_keymap import as_sige, parameter_shapes, parameters, same

    made = parameters()
    state = {name: torch.from_numpy(np.array(value)) for name, value in as_sige(made).items()}
    beside = {
        "eight": torch.ones(2).to(torch.float8_e5m2),
        "meta": torch.empty(3, device="meta"),
        "expanded": torch.ones(1).expand(1 << 40),
    }
    torch.save({"netG": state, "optimizer": beside}, tmp_path / "x.pth")
    with read_checkpoint(tmp_path / "x.pth") as found:
        family, config = identify(found)
        same(convert(family, found, parameter_shapes(config)), made)
