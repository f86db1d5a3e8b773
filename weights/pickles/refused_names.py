"""A name that is not on the allow-list in; a CheckpointError with its likely purpose and the fix out."""

from __future__ import annotations

import re

from ..errors import CheckpointError, shown

ATTACK = "It may be an attack: do not open it with torch.load either"
PLAIN = "Where the file was made, save the weights alone: torch.save(model.state_dict(), path)"
WHOLE = "If this is a model saved whole, save its model.state_dict() instead, where its code is"

# Modules whose functions run programs, Python code or pickles, or access files and machines.
_MODULES = (
    r"os|posix|nt|posixpath|ntpath|shutil|tempfile|sys|gc|atexit|cffi|_?ctypes|_?socket|ssl"
    r"|subprocess|_posixsubprocess|pty|pexpect|popen2|multiprocessing|threading|_thread|asyncio|webbrowser"
    r"|runpy|importlib|imp|pkgutil|zipimport|codeop|bdb|pdb|timeit|cProfile|doctest|unittest"
    r"|_?pickle|cPickle|marshal|shelve|dill|cloudpickle|joblib|compileall|py_compile|lib2to3|idlelib|antigravity"
    r"|pip|setuptools|distutils|ensurepip|venv|urllib|ftplib|smtplib|telnetlib|requests"
)

# Classes of such modules that only hold values.
_HARMLESS = re.compile(
    r"(?:os|posix|nt)\.(?:\w+_result|terminal_size|sched_param)|sys\.\w+_info|threading\.\w*Error"
    r"|urllib\.parse\.\w+Result(?:Bytes)?|shutil\._ntuple_diskusage|ssl\.\w+Errors?",
    re.ASCII,
)

# Such functions of modules that are harmless otherwise.
_FUNCTIONS = (
    r"builtins\.(?:eval|exec|execfile|compile|__import__|getattr|setattr|delattr|open|file|input|raw_input|apply|map"
    r"|breakpoint|globals|locals|vars|help|exit|quit)",
    # Modules that share names with users' modules, or that hold harmless classes.
    r"_?io\.(?:open|open_code|FileIO|OpenWrapper)|signal\.[a-z_]\w*|http\.(?:client|server)\..+",
    r"code\.(?:Interactive\w+|interact|compile_command)|cmd\.Cmd|trace\.(?:Trace|main)|profile\.(?:Profile|run|runctx)",
    r"site\.(?:exec\w+|main|add\w+|enablerlcompleter)|commands\.(?:getoutput|getstatusoutput|getstatus)",
    r"types\.(?:\w*(?:Code|Function|Lambda|Method|Module|Generator|Coroutine)Type|new_class)",
    r"operator\.(?:methodcaller|attrgetter|call)|_operator\.(?:methodcaller|attrgetter|call)|functools\.reduce",
    r"platform\.popen|inspect\.\w*source\w*|yaml\.\w*load\w*|pandas\.(?:read_pickle|eval)|codecs\.open",
    r"torch\.load|torch\.serialization\.\w*load\w*|torch\.storage\._load_from_bytes|torch\.(?:hub|jit|package"
    r"|_dynamo|_inductor|compiler|multiprocessing|ops|_ops|classes|utils\.cpp_extension|utils\.model_zoo"
    r"|fx\.graph_module|distributed\.rpc)\..+",
    r"numpy\.(?:load|fromfile|memmap|testing\..+|f2py\..+|distutils\..+|lib\.(?:npyio|_npyio_impl)\..+)",
)
_RUNS = re.compile(rf"(?:{_MODULES})\..*|" + "|".join(_FUNCTIONS), re.ASCII | re.DOTALL)

_UNUSUAL = re.compile(r"torch\b.*(?:qtensor|QU?Int\w*Storage|sparse|nested|wrapper_subclass)", re.ASCII)
_CLASS = re.compile(r"\w+(?:\.\w+)*\._*[A-Z]\w*|torch\.nn\..*", re.ASCII)


def refusal(full: str) -> CheckpointError:
    """The error for `full`, a module and a name in it."""
    if _RUNS.fullmatch(full) and not _HARMLESS.fullmatch(full):
        advice = ATTACK
    elif _UNUSUAL.match(full):
        advice = "Quantized, sparse and nested tensors are not supported: save dense ones"
    elif _CLASS.fullmatch(full):
        advice = WHOLE
    else:
        advice = PLAIN
    return CheckpointError(
        f"the file refers to {shown(full)}, which is not on the list of safe names", advice=advice
    )
