"""A Docker compose file for a checkpoint, with vLLM and TGI as profiles; and the arguments of TGI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ollamake.serving_configuration import INT8, NF4
from ollamake.serving_memory import Room
from ollamake.serving_vllm import PLUGINS, VERSION, Served

VLLM_IMAGE = f"vllm/vllm-openai:v{VERSION}"
TGI_VERSION = "3.3.7"
TGI_IMAGE = f"ghcr.io/huggingface/text-generation-inference:{TGI_VERSION}"
"""The last release; the project is in maintenance."""

_INSIDE = "/ollamake"
"""The working directory in the container, in which relative paths mean what they mean where Snakemake runs."""
_PORT = 8000
_QUANTIZE = {NF4: "bitsandbytes-nf4", INT8: "bitsandbytes"}
_LOADING = "1800s"
"""How long a server may take to load before it counts as unhealthy."""


def tgi_arguments(served: Served, room: Room, folder: str, tokenizer_config: str) -> list[str]:
    """Return the arguments of text-generation-launcher, one NAME=VALUE each.

    ``folder``: the 16-bit checkpoint; TGI quantizes by bitsandbytes when it loads, and does not read what is quantized.
    ``tokenizer_config``: a tokenizer_config.json with the chat template in it, since TGI does not read chat_template.jinja.
    """
    arguments: dict[str, Any] = {"model-id": folder, "tokenizer-config-path": tokenizer_config}
    if served.checkpoint in _QUANTIZE:
        arguments["quantize"] = _QUANTIZE[served.checkpoint]  # which excludes --dtype
    elif served.dtype in ("float16", "bfloat16"):
        arguments["dtype"] = served.dtype
    arguments |= {"max-total-tokens": room.context, "max-input-tokens": room.context - 1, "num-shard": room.devices}
    if room.utilization is not None:
        arguments["cuda-memory-fraction"] = room.utilization
    if served.adapter is not None:
        arguments["lora-adapters"] = f"{served.name}={served.adapter}"
    arguments |= {"port": _PORT, "usage-stats": "off"}
    return [f"--{name}={value}" for name, value in arguments.items()]


def compose_services(
    served: Served, room: Room, port: int, config_file: str, mounted: Mapping[str, str], tgi: Sequence[str] | None
) -> dict[str, Any]:
    """Return the compose file as an object.

    ``config_file``: vllm.yaml, as a path like those in it. ``mounted``: path as the servers are given it -> its place on this
    machine, absolute or relative to the compose file. ``tgi``: TGI's arguments, None if it cannot serve the checkpoint.
    """
    quantized = served.checkpoint in _QUANTIZE
    vllm: dict[str, Any] = {"profiles": ["vllm"], "image": VLLM_IMAGE}
    if quantized:
        vllm["image"] = f"ollamake-vllm-bitsandbytes:v{VERSION}"
        vllm["build"] = {
            "dockerfile_inline": f"FROM {VLLM_IMAGE}\nRUN pip install --no-cache-dir {' '.join(PLUGINS)}\n"
        }
    # Behind --config, since the last one counts.
    command = ["--config", config_file, "--host", "0.0.0.0", "--port", str(_PORT)]
    vllm |= {"command": command, "environment": _environment("VLLM_API_KEY")}
    probe = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{_PORT}/health', timeout=5)"
    vllm |= _common(room.devices, port, mounted, ["CMD", "python3", "-c", probe])
    services = {"vllm": vllm}
    if tgi is not None:
        services["tgi"] = {
            "profiles": ["tgi"],
            "image": TGI_IMAGE,
            "command": list(tgi),
            "environment": _environment("API_KEY"),
            **_common(room.devices, port, mounted, ["CMD", "curl", "-fsS", f"http://127.0.0.1:{_PORT}/health"]),
        }
    return {"name": _project(served), "services": _escaped(services)}


def compose_yaml(services: Mapping[str, Any], header: Sequence[str]) -> str:
    """Return the compose file, with comments in front."""
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header)
    # What services have in common is written out: aliases are no help to a reader.
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    return comments + yaml.dump(dict(services), Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000)


def places_to_mount(paths: Sequence[str], beside: Path) -> dict[str, str]:
    """Return path in the container -> place on this machine for all that servers read.

    ``paths``: as the servers are given them. ``beside``: the folder of the compose file, which relative places begin at. A folder
    whose files are links to elsewhere, as in a cache of the Hugging Face hub, is mounted from the folder above both.
    """
    places: list[str] = []
    for path in paths:
        folder, climbed = Path(path), 0
        for link in folder.glob("*") if folder.is_dir() else ():
            if link.is_symlink() and link.readlink().is_absolute():
                places.append(str(link.readlink().parent))
            elif link.is_symlink():
                while not link.resolve().is_relative_to(_above(folder, climbed).resolve()):
                    climbed += 1
        places.append(os.path.normpath(_above(folder, climbed)))
    mounts = {
        os.path.normpath(PurePosixPath(_INSIDE) / place): place
        if Path(place).is_absolute()
        else os.path.relpath(place, beside)
        for place in sorted(places)
    }
    return {inside: place for inside, place in mounts.items() if not any(_is_below(inside, one) for one in mounts)}


def _is_below(path: str, other: str) -> bool:
    return path != other and PurePosixPath(path).is_relative_to(other)


def _above(folder: Path, levels: int) -> Path:
    return folder.joinpath(*[".."] * levels)


def _common(devices: int, port: int, mounted: Mapping[str, str], test: Sequence[str]) -> dict[str, Any]:
    return {
        "working_dir": _INSIDE,
        "ports": [{"target": _PORT, "published": str(port), "host_ip": "127.0.0.1"}],
        "volumes": [
            {
                "type": "bind",
                "source": place,
                "target": inside,
                "read_only": True,
                "bind": {"create_host_path": False},
            }
            for inside, place in mounted.items()
        ],
        "shm_size": "8gb",
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "count": devices, "capabilities": ["gpu"]}]}
            }
        },
        "healthcheck": {
            "test": list(test),
            "interval": "15s",
            "timeout": "10s",
            "retries": 3,
            "start_period": _LOADING,
        },
        "restart": "unless-stopped",
    }


def _environment(key: str) -> dict[str, str | None]:
    """Return the environment of a server: nothing is asked of the hub, and a key is passed on where one is set."""
    return {"HF_HUB_OFFLINE": "1", key: None}


def _project(served: Served) -> str:
    """Return a name of the compose project: lower-case letters, digits, dashes and underscores."""
    return f"{served.name}-{served.checkpoint}".replace(".", "-")


def _escaped(value: Any) -> Any:
    """Return a value in which compose takes no dollar for a variable."""
    match value:
        case str():
            return value.replace("$", "$$")
        case dict():
            return {key: _escaped(one) for key, one in value.items()}
        case list():
            return [_escaped(one) for one in value]
    return value
