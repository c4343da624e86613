"""Checkpoints that are whole or absent, and exact to the bit.

    checkpoints/step-00001200/   weights.safetensors  ema.safetensors ...  state.json  manifest.json

Tensors are safetensors, the rest is JSON, nothing is pickled. The folder is built aside, flushed to the disk
and renamed, so whatever carries a step's name was once complete; `manifest.json` holds the size and SHA-256
of each file, and `load` checks them.
"""

import hashlib
import json
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tenfold.engine.atomic import atomic_directory, discard_directory, remove_leftovers, write_error
from tenfold.errors import UserError

FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")
_GROUP = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given: tensors by group and name (on the CPU), and the JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write step `step` into `folder`, then delete all but the newest `keep`; returns the new folder.

    Only one process may save into `folder`; what a killed one left half-written is cleared here. A whole
    checkpoint of the same step stays as it is, for a run reaches each step in one state only. Raises
    `UserError` on a full disk and the like; then the older checkpoints are untouched.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"save wants step >= 0 and keep >= 1, got step {step} and keep {keep}")
    folder = Path(folder)
    path = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not (path.exists() and _is_whole(path)):
            with atomic_directory(path) as temporary:
                _write(temporary, path, step, tensors, state)
        for old in _steps(folder)[:-keep]:
            if old != path:
                discard_directory(old)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in `folder`, or None; `load` tells whether it is undamaged."""
    steps = _steps(Path(folder))
    return steps[-1] if steps else None


def load(path: Path, groups: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint, or only some `groups` of it, after checking sizes and SHA-256.

    A missing, truncated or altered file raises `UserError` naming it and what to do.
    """
    path = Path(path)
    match = _STEP.fullmatch(path.name)
    if match is None or not path.is_dir():
        raise UserError(f"{path} is no checkpoint; give a folder named like step-00001200")
    files = _read_manifest(path)
    available = [Path(name).stem for name in files if name.endswith(".safetensors")]
    wanted = available if groups is None else list(groups)
    for group in wanted:
        if group not in available:
            raise UserError(f"checkpoint {path} has no '{group}'; it holds {', '.join(available)}")
    for name in (*(f"{group}.safetensors" for group in wanted), "state.json"):
        fault = _fault(path / name, files.get(name))
        if fault:
            raise _damaged(path / name, fault)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {group: _read(path / f"{group}.safetensors") for group in wanted}
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    return Checkpoint(int(match[1]), tensors, state, path)


def load_module(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `module`; `UserError` naming `source` and the first tensor that does not fit."""
    own = module.state_dict()
    for name in own.keys() - tensors.keys():
        raise _misfit(source, f"has no tensor '{name}'")
    for name in tensors.keys() - own.keys():
        raise _misfit(source, f"has a tensor '{name}' that the model does not know")
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            shapes = f"{tuple(value.shape)} where the model wants {tuple(own[name].shape)}"
            raise _misfit(source, f"has '{name}' of shape {shapes}")
    module.load_state_dict(dict(tensors))


def optimizer_to_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of AdamW (any optimiser whose state is tensors), named "<parameter>.<moment>".

    Parameters are numbered in the order of the groups. Learning rate, betas and the like are not included:
    they belong to the config and the schedule, and the loop sets them.
    """
    named = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"state '{name}' of parameter {index} is {type(value).__name__}, not a tensor"
                )
            named[f"{index}.{name}"] = value
    return named


def optimizer_from_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Put back what `optimizer_to_tensors` made; `UserError` naming `source` if it fits other parameters."""
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        index = int(number)
        if index >= len(parameters):
            raise _misfit(source, f"has moments for more than the model's {len(parameters)} parameters")
        shape = parameters[index].shape
        if value.dim() and value.shape != shape:
            shapes = f"{tuple(value.shape)} where the model wants {tuple(shape)}"
            raise _misfit(source, f"has '{name}' of parameter {index} of shape {shapes}")
        state.setdefault(index, {})[name] = value
    # The groups keep this optimiser's own settings; torch moves each moment to its parameter's device.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def rng_state() -> dict[str, Tensor]:
    """The states of the global generators of python, numpy and torch (CPU and CUDA), as one tensor group."""
    _, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if name != "MT19937":
        raise ValueError(f"numpy's global generator is {name}; only MT19937 can be saved")
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` returned; CUDA devices that are not there now are left out."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda{index}"], index)


def _steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _write(
    temporary: Path,
    path: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    for group, named in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"a group is named with lower-case letters, digits and _, got {group!r}")
        name = f"{group}.safetensors"
        try:
            save_file(_savable(named), temporary / name)
        except SafetensorError as error:
            # The library reports a full disk as text; its message is one line.
            raise UserError(
                f"cannot write {path / name}: {error}; free some space, then go on with --resume"
            ) from error
    (temporary / "state.json").write_text(_json(state), encoding="utf-8")
    files = {file.name: _entry(file) for file in sorted(temporary.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (temporary / "manifest.json").write_text(_json(manifest), encoding="utf-8")


def _read(file: Path) -> dict[str, Tensor]:
    # Cloned, for what is loaded points into the mapped file: later damage to the file would end the process.
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _savable(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory, as the format wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in named.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        if storage in seen:
            plain = plain.clone()
        seen.add(storage)
        result[name] = plain
    return result


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{file} has format {manifest['format']}; use the version of tenfold that wrote it"
            )
        return dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _fault(file: Path, entry: Any) -> str:
    """What is wrong with one file of a checkpoint; empty if nothing."""
    if not isinstance(entry, dict):
        return "not in the manifest"
    try:
        found = file.stat().st_size
        if found != entry.get("bytes"):
            return f"{found} bytes where {entry.get('bytes')} were written"
        return "" if _entry(file) == entry else "its SHA-256 is not the one that was written"
    except OSError as error:
        return error.strerror or str(error)


def _is_whole(path: Path) -> bool:
    try:
        return not any(_fault(path / name, entry) for name, entry in _read_manifest(path).items())
    except UserError:
        return False


def _damaged(file: Path, fault: str) -> UserError:
    path = file if _STEP.fullmatch(file.name) else file.parent
    older = [other for other in _steps(path.parent) if other.name < path.name]
    advice = f"to go on from {older[-1].name}" if older else "and start again: there is no older one"
    return UserError(f"checkpoint file {file} is damaged ({fault}); delete the folder {path} {advice}")


def _misfit(source: Path, what: str) -> UserError:
    return UserError(f"checkpoint {source} {what}; use the config that it was trained with")


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
