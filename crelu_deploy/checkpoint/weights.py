"""From whatever ``torch.load`` returned to tensors that fit a module, or a reason why not.

Nothing here reads files; every refusal is a ``CheckpointError`` without the path in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from crelu_deploy.errors import CheckpointError
from crelu_deploy.models.identification import COUNTER
from crelu_deploy.preprocessing import Preprocessing

KEY, VERSION = "crelu_deploy", 1
"""Where a checkpoint of this project says what it is, and the newest layout that is read."""

WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Keys under which trainers (Lightning, timm, reference scripts) keep the weights."""

EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys under which they keep the exponential moving average of the weights."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of keys that torch.compile, FSDP and activation checkpointing put anywhere."""

AVERAGED = "n_averaged"
"""The counter that torch.optim.swa_utils.AveragedModel keeps beside the weights."""

SHOWN = 3
"""How many keys a message names."""


def unwrap(content: object, *, ema: bool = False) -> tuple[object, tuple[str, ...]]:
    """Return the state dict or module inside ``content``, and what was done to find it.

    Args:
        content: what ``torch.load`` returned.
        ema: take the moving average instead of the weights themselves.

    Raises:
        CheckpointError: there is nothing of the kind inside.
    """
    if isinstance(content, Mapping):
        for key in EMA if ema else WEIGHTS:
            if isinstance(content.get(key), Mapping | nn.Module):
                return content[key], () if KEY in content else (f"took the entry {key!r}",)
    if ema:
        raise CheckpointError(f"holds no moving average of weights (found {_describe(content)})")
    return content, ()


def tensors_of(state: object) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a state dict, and what was done to their keys.

    Raises:
        CheckpointError: it is no state dict, or a tensor cannot be used as it is: quantised,
            without data (meta device), sparse, or larger than its storage.
    """
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(_no_weights(state))
    for key, value in state.items():
        _check_entry(key, value)
    tensors = {_clean(key): value for key, value in state.items() if key != AVERAGED}
    if tensors.keys() <= state.keys():
        return tensors, ()
    return tensors, ("removed the marks of torch.compile or FSDP from the keys",)


def _header(content: object) -> Mapping[str, object] | None:
    """Return what a checkpoint of this project says of itself; None for other files."""
    header = content.get(KEY) if isinstance(content, Mapping) else None
    return header if isinstance(header, Mapping) else None


def named_arch(content: object) -> str | None:
    """Return the architecture that a checkpoint of this project names; None for other files.

    Raises:
        CheckpointError: a newer version of this project wrote it.
    """
    header = _header(content)
    if header is None:
        return None
    version, arch = header.get("version"), header.get("arch")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"is a crelu_deploy checkpoint of version {version!r}, this program reads up to "
            f"{VERSION}: install a newer crelu-deploy"
        )
    return str(arch)


def named_preprocessing(content: object) -> Preprocessing | None:
    """Return how a checkpoint of this project reads pixels; None where it does not say.

    Raises:
        CheckpointError: it says so in a form that is not ours.
    """
    entry = (_header(content) or {}).get("preprocessing")
    try:
        return None if entry is None else Preprocessing.parse(entry)
    except ValueError as error:
        raise CheckpointError(f"is damaged: {error}") from error


def _no_weights(content: object) -> str:
    if isinstance(content, Mapping) and "param_groups" in content:
        return "holds the state of an optimizer and no weights: save model.state_dict()"
    return f"holds no state_dict (found {_describe(content)}): save model.state_dict()"


def _describe(content: object) -> str:
    kind = type(content).__name__
    if not isinstance(content, Mapping):
        return kind
    return f"{kind} with {', '.join(_first(content)) or 'no keys'}"


def _first(keys: Mapping[str, object] | list[str]) -> list[str]:
    names = [str(key)[:80] for key in keys]
    return names[:SHOWN] + [f"{len(names) - SHOWN} more"] * (len(names) > SHOWN)


def _clean(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _check_entry(key: object, value: object) -> None:
    if not isinstance(key, str) or not isinstance(value, Tensor):
        kind = type(value).__name__
        raise CheckpointError(f"state_dict entry {str(key)[:80]!r} is not a tensor but {kind}")
    if value.is_quantized:
        raise CheckpointError(f"{key} is quantised ({value.dtype}): give the float network")
    if value.is_meta:
        raise CheckpointError(f"{key} has a shape but no data (meta device): save the real weights")
    if value.layout != torch.strided:
        raise CheckpointError(f"{key} is sparse ({value.layout}): save it with .to_dense()")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{key} is larger than its storage: save it with .contiguous()")


def stripped(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield ``("", tensors)``, then the same without each first part that all keys share.

    ``module.`` of DataParallel, ``model.`` of Lightning and their likes are such parts. The
    string is what was removed.
    """
    prefix = ""
    while True:
        yield prefix, tensors
        parts = {key.partition(".")[0] for key in tensors}
        if len(parts) != 1 or not all("." in key for key in tensors):
            return
        part = f"{parts.pop()}."
        prefix += part
        tensors = {key.removeprefix(part): value for key, value in tensors.items()}


def fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load ``tensors`` into ``module`` in place, every tensor of it, and return what was done.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes or kinds of numbers differ.
    """
    own = module.state_dict()
    prefix, found = max(stripped(tensors), key=lambda pair: len(pair[1].keys() & own))
    counters = {k: v for k, v in own.items() if k.endswith(COUNTER) and k not in found}
    _check_keys(own, {**found, **counters})
    _check_kinds(own, found)
    module.load_state_dict({**found, **counters})
    notes = [f"stripped prefix {prefix}"] if prefix else []
    if counters:
        notes.append(f"{len(counters)} batch counters were absent and are not needed")
    changed = {str(v.dtype) for k, v in found.items() if v.dtype != own[k].dtype}
    return (*notes, *(f"converted weights from {name}" for name in sorted(changed)))


def _check_keys(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    different = [
        f"{key} is {_times(tensors[key])} in place of {_times(value)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": different}
    faults = [f"{len(k)} {what} ({', '.join(_first(k))})" for what, k in kinds.items() if k]
    if faults:
        raise CheckpointError(f"its tensors do not fit the architecture: {'; '.join(faults)}")


def _check_kinds(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise CheckpointError(f"{key} holds {value.dtype}, expected {own[key].dtype}")


def check_finite(module: nn.Module) -> None:
    """Refuse a module with NaN anywhere or an infinite parameter.

    A buffer, such as an attention mask, may hold an infinity by design.
    """
    bad = [(key, ~value.isfinite()) for key, value in module.named_parameters()]
    bad += [(key, value.isnan()) for key, value in module.named_buffers()]
    for key, mask in bad:
        if mask.any():
            raise CheckpointError(
                f"{key}: {int(mask.sum())} of {mask.numel()} values are NaN or infinite: "
                "the training diverged, give an earlier checkpoint"
            )


def _times(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"
