"""Reads a policy from a run folder without trusting the folder.

Nothing is unpickled or evaluated, and no code in the folder is run. Names in ``config.json`` are
imported only for network classes, environments' modules and wrappers.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from spinup.runs.folder import BEST, CONFIG, POLICY
from spinup.runs.json_values import torch_nn_class
from spinup.runs.wording import one_line

ANY_NAME = re.compile(r"[\w.]+:[\w.<>]+")  # "module:qualname", as in config.json
NEEDED = ("actor_critic", "ac_kwargs", "env", "observation_space", "action_space")


def read_run_config(folder: Path) -> dict[str, Any]:
    """Returns the ``config.json`` of a training run.

    Raises:
        FileNotFoundError: this isn't a run folder; the message names similar folders.
        ValueError: the file can't be read, or keys are missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}{_near_folders(folder)}")
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is not a run folder: it has no config.json{_runs_below(folder)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} can't be read: {one_line(error)}") from error
    missing = [key for key in NEEDED if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{str(path)!r} is not from a training run: it lacks {missing}")
    return config


def _near_folders(folder):
    """Suggests folders whose names begin with this name, or are spelt similarly."""
    parent = folder.parent
    there = sorted(e.name for e in parent.iterdir() if e.is_dir()) if parent.is_dir() else []
    near = [name for name in there if name.startswith(folder.name)]
    near = near or difflib.get_close_matches(folder.name, there)
    return _did_you_mean(folder.with_name(name) for name in near)


def _runs_below(folder):
    return _did_you_mean(sorted(path.parent for path in folder.glob(f"*/{CONFIG}")))


def _did_you_mean(folders):
    names = [repr(str(folder)) for folder in folders]
    more = " ..." if names[4:] else ""
    return f"; did you mean {' or '.join(names[:4])}{more}?" if names else ""


def find_weights(folder: Path, itr: int | str) -> Path:
    """Returns the file of saved weights.

    Args:
        folder: the run folder.
        itr: the number of the save, ``"last"`` or ``"best"``.

    Raises:
        FileNotFoundError: there are no saves.
        ValueError: there is no save with this number.
    """
    best = folder / POLICY / f"{BEST}.safetensors"
    if itr == BEST and best.is_file():
        return best
    found = sorted((folder / POLICY).glob("model*.safetensors"))
    names = [(path, re.fullmatch(r"model(\d*)\.safetensors", path.name)) for path in found]
    saves = {name[1] or "last": path for path, name in names if name}
    if not saves:
        is_old = any((folder / POLICY).glob("*.pt"))
        raise FileNotFoundError(
            f"{str(folder)!r} holds no saved policy: there is no {POLICY}/model.safetensors"
            + " (Spinning Up's model.pt is a pickle, and is not read)" * is_old
        )
    if itr == "last" and "last" not in saves:
        itr = max(saves, key=int)
    if str(itr) not in saves:
        known = sorted(saves, key=lambda save: (save == "last", save.zfill(20)))
        known += [BEST] * best.is_file()
        raise ValueError(f"{str(folder)!r} holds no save {itr!r}: it has {', '.join(known)}")
    return saves[str(itr)]


def import_network_class(name: Any, folder: Path) -> type[nn.Module]:
    """Returns the network class that ``config.json`` names.

    Raises:
        ValueError: the name can't be imported, or isn't a subclass of ``torch.nn.Module``.
    """
    remedy = "pass actor_critic=..., the class or function that builds the networks, from Python"
    if not isinstance(name, str) or not ANY_NAME.fullmatch(name):
        raise ValueError(
            f"The run's actor_critic can't be imported (config.json describes it as {name!r}): "
            f"{remedy}"
        )
    module, _, qualname = name.partition(":")
    try:
        found: Any = import_module(module, folder)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing may raise anything
        where = " (the script or notebook that trained it)" if module == "__main__" else ""
        raise ValueError(
            f"The run's actor_critic {name!r} can't be imported{where}: {one_line(error)}; {remedy}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(
            f"The run's actor_critic {name!r} is not a subclass of torch.nn.Module, and nothing "
            f"else that a run folder names is called: {remedy}"
        )
    return found


def import_module(module: str, folder: Path) -> ModuleType:
    """Imports a module that a run folder names.

    Raises:
        ImportError: it belongs to Python's standard library, or is in the run folder.
    """
    if module == "__main__":
        return sys.modules["__main__"]
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or "__main__" in module:
        raise ImportError(f"{module} belongs to Python itself")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        raise ImportError(f"no module named {top!r} here")
    inner, within = module.split(".")[1:], folder.resolve()
    places = [Path(p) for p in spec.submodule_search_locations or [spec.origin or ""]]
    # Check every folder and file on the path: a namespace package may extend into run folders.
    ways = [place.joinpath(*inner[:i]) for place in places for i in range(len(inner) + 1)]
    ways = [way.resolve() for path in ways for way in (path, path.with_name(path.name + ".py"))]
    if any(within in (way, *way.parents) for way in ways):
        raise ImportError(f"{module} is in the run folder, from which no code is run")
    return importlib.import_module(module)


def restore_ac_kwargs(value: Any, key: str = "ac_kwargs") -> Any:
    """Inverts `convert_json` for numbers, strings, lists, dicts and classes of torch.nn.

    Raises:
        ValueError: a name isn't that of a class of torch.nn.
    """
    if isinstance(value, dict) and set(value) == {"partial", "args", "kwargs"}:
        args, kwargs = (restore_ac_kwargs(value[part], key) for part in ("args", "kwargs"))
        return functools.partial(_torch_class(value["partial"], key), *args, **kwargs)
    if isinstance(value, dict):
        return {name: restore_ac_kwargs(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [restore_ac_kwargs(entry, key) for entry in value]
    if isinstance(value, str) and ANY_NAME.fullmatch(value):
        return _torch_class(value, key)
    return value


def _torch_class(name, key):
    module, _, qualname = str(name).partition(":")
    found = None
    with contextlib.suppress(ValueError):
        found = torch_nn_class(qualname)
    if found is None or found.__module__ != module:
        raise ValueError(
            f"The run's {key} is {name!r}, which is not a class of torch.nn and is not imported: "
            "from Python, pass ac_kwargs=... with all of them"
        )
    return found


def load_weights(ac: nn.Module, path: Path) -> None:
    """Copies saved weights into a network.

    Raises:
        ValueError: names or shapes don't match, or the file can't be read.
    """
    try:
        saved = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} can't be read: {one_line(error)}") from error
    ours = ac.state_dict()
    wrong = [f"the file has no {name}" for name in ours if name not in saved]
    wrong += [f"the network has no {name}" for name in saved if name not in ours]
    wrong += [
        f"{name} is {tuple(saved[name].shape)} in the file and {tuple(ours[name].shape)} in the "
        "network"
        for name in ours
        if name in saved and saved[name].shape != ours[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise ValueError(
            f"The weights in {str(path)!r} don't fit {type(ac).__name__}: {', '.join(wrong[:2])}"
            f"{more}; config.json, or the given actor_critic or ac_kwargs, belongs to another run"
        )
    ac.load_state_dict(saved)
