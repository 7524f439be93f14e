"""What can be found wrong before work starts: base, adapter, disk, memory, programs, server; in seconds, one message each."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollamake.adapter import read_adapter
from ollamake.adapter_serving import require_servable
from ollamake.base_config import require_base_config, require_vocabulary
from ollamake.bitsandbytes_needs import bitsandbytes_jobs
from ollamake.build_room import require_disk, require_memory
from ollamake.checkpoint import read_checkpoint
from ollamake.disk_peak import (
    MADE_HERE_BYTES,
    TOOLS_BYTES,
    DiskPeak,
    Registration,
    adapter_peak,
    added_by_others,
    disk_peak,
)
from ollamake.errors import OllamakeError
from ollamake.free_disk import free_bytes, same_filesystem
from ollamake.free_memory import free_memory
from ollamake.hub_room import bytes_to_fetch, with_downloads
from ollamake.input_consistency import (
    check_tokenizers,
    require_same_base,
    require_tokenizer,
    trained_routers,
    unfinished_training,
)
from ollamake.installed_ollama import installed_version, require_create_of_files
from ollamake.job_needs import largest_job
from ollamake.llama_cpp_source import require_compiler
from ollamake.merge_plan import plan_merge
from ollamake.ollama_server import OllamaServer, ServerUnreachable
from ollamake.perplexity_command import require_parse_special
from ollamake.program_start import require_starting
from ollamake.published_quality import CANDIDATES
from ollamake.questions import read_questions
from ollamake.rag_check import check_rag_file
from ollamake.serving_adapter import require_served_by_vllm
from ollamake.text_checks import check_texts

log = logging.getLogger("ollamake")

_AUTO = "auto"
"""Stands among the quantizations for the one that the plan will choose."""

_THIS_MACHINE = re.compile(r"://(localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0|\[::1?\])(?=[:/]|$)")


def check_inputs(
    name: str, spec: Mapping[str, Any], results: Path, now: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check one model and return what was found.

    ``spec``: base, adapters (path, weight), made_here (those of the folders that a rule makes, which are checked when they are
    merged), dtype, quantizations ("auto" among them: one that is not chosen yet), target, host, store, questions,
    compiler_needed, tools (program and path of those found here), keep_merged, keep_unquantized, disk_gib
    (what the build may take, or None). All of this optional: texts (calibration and evaluation: text and chat files of each),
    compared (types that are made, not registered), measured_unquantized (whether it is a base that is measured),
    serves_adapter (whether it is its base's GGUF with the adapter beside it, so that nothing is merged), checkpoints (nf4, int8:
    those of bitsandbytes), evaluated_context (tokens of a chunk, if these are measured), rag (file and keys, as rag_check has
    them), hub (what is on the Hugging Face hub: commits of its folders, weights by path, keeps_downloads), served_beside
    (whether vLLM is to serve the adapter beside its base), shapes (the folder of shapes that come with ollamake).

    ``now`` (all of it optional): chosen (types that "auto" means by the plan that is there; none without one),
    builds_llama_cpp (whether programs of it are still to be built; true if not said), jobs_run_here (whether the heavy jobs run
    on this machine, whose memory they need; true if not said), others (the models that are built before: name, base_bytes,
    quantizations ..., as disk_peak.added_by_others has them, with "auto" possible).

    Raises OllamakeError for the first fault.
    """
    now = now or {}
    # `compiler_needed` says that no program was found; those of an earlier build in resources/ need no compiler either.
    builds_tools = spec["compiler_needed"] and now.get("builds_llama_cpp", True)
    if builds_tools:
        require_compiler()
    _check_tools(spec)
    if spec["questions"]:
        questions = read_questions(Path(spec["questions"]), f"models.{name}.answers.questions")
        log.info("%d questions", len(questions))
    _check_texts(name, spec.get("texts", {}))
    if "rag" in spec:
        check_rag_file(Path(spec["rag"]["file"]), spec["rag"]["keys"], f"models.{name}.rag.file")
    server = _check_server(name, spec)
    chosen = now.get("chosen", [])
    quantizations = _counted(spec["quantizations"], chosen)
    compared = [kind for kind in _counted(spec.get("compared", [])) if kind not in quantizations]
    registration = _registration(server, Path(spec["store"]), results)
    keep = {"keep_merged": spec["keep_merged"], "keep_unquantized": spec["keep_unquantized"]}
    job, edited, needs = None, None, None
    warnings: list[str] = []
    if spec["made_here"]:
        needed = MADE_HERE_BYTES + (TOOLS_BYTES if builds_tools else 0)
        peak = DiskPeak(needed, "an allowance for the demo", needed, 0)
    elif spec.get("serves_adapter"):
        plan, edited, warnings = _plan(name, spec)
        version = server.version() if server else installed_version()
        adapter = Path(spec["adapters"][0]["path"])
        require_servable(plan, Path(spec["base"]), adapter, version, f"models.{name}.serve")
        peak = adapter_peak(plan, results / name, quantizations, registration)
    else:
        plan, edited, warnings = _plan(name, spec)
        folders = [Path(adapter["path"]) for adapter in spec["adapters"]]
        require_tokenizer(f"models.{name}.base", Path(spec["base"]), folders, plan)
        peak = disk_peak(
            plan, name, results / name, quantizations, registration, **keep, builds_tools=builds_tools,
            compared=compared, measured_unquantized=spec.get("measured_unquantized", False),
            checkpoints=spec.get("checkpoints", ()),
        )  # fmt: skip
        checkpoints = bitsandbytes_jobs(plan, spec.get("checkpoints", ()), spec.get("evaluated_context"))
        jobs = [largest_job(plan, [*quantizations, *compared]), *checkpoints]
        job, needs = max(jobs, key=lambda one: one[1].mem_mb)
    hub = spec.get("hub")
    to_fetch = bytes_to_fetch(hub["weights"]) if hub else 0
    if hub:
        peak = with_downloads(peak, to_fetch, keeps=hub["keeps_downloads"])
        log.info("%.2f GB of weights are downloaded from the hub", to_fetch / 1e9)
    if spec.get("served_beside") and not spec["made_here"]:
        require_served_by_vllm(name, plan, Path(spec["base"]), Path(spec["adapters"][0]["path"]))
    others = [
        other | {"quantizations": _counted(other["quantizations"]), "compared": _counted(other.get("compared", []))}
        for other in now.get("others", [])
    ]
    added, in_store = added_by_others(others, results, registration, **keep)
    peak = replace(peak, others=added, others_in_store=in_store)
    allowed = require_disk(name, peak, results, store=Path(spec["store"]), disk_gib=spec["disk_gib"])
    log.info(
        "disk: %.2f GB at the peak (%s), other models of this configuration: %.2f GB, %.2f GB may be taken",
        *(peak.needed / 1e9, peak.step, peak.others / 1e9, allowed / 1e9),
    )
    memory = free_memory() if now.get("jobs_run_here", True) else None
    if job is not None and needs is not None:
        require_memory(name, job, needs, memory)
        log.info("memory: %.1f GB in the largest job (%s)", needs.mem_mb / 1e3, job)
    return {
        "base": spec["base"],
        "adapters": spec["adapters"],
        "tensors_with_update": edited,
        "quantizations": quantizations,
        "assumed": _assumption(spec["quantizations"], chosen),
        "disk_needed_gb": _gb(peak.needed),
        "disk_peak_at": peak.step,
        "disk_stays_gb": _gb(peak.stays),
        "disk_in_store_gb": _gb(peak.in_store),
        "disk_other_models_gb": _gb(peak.others),
        "disk_other_models_in_store_gb": _gb(peak.others_in_store),
        "disk_free_gb": _gb(free_bytes(results)),
        "disk_allowed_gb": _gb(allowed),
        "largest_job": None if needs is None else {"job": job, "memory_gb": _gb(needs.mem_mb * 1e6)},
        "memory_free_gb": None if memory is None else _gb(memory.free),
        **({"hub": hub["commits"], "downloaded_gb": _gb(to_fetch)} if hub else {}),
        "warnings": warnings,
    }


def _check_tools(spec: Mapping[str, Any]) -> None:
    """Start each program that was found here; of llama-perplexity see that it reads conversations, if it has to."""
    measures_chat = bool(spec.get("texts", {}).get("evaluation", {}).get("chat"))
    for program, path in spec["tools"]:
        require_starting(program, Path(path))
        if program == "llama-perplexity" and measures_chat:
            require_parse_special(Path(path))


def _check_texts(name: str, texts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Check the text to calibrate on, then the text to measure on, also against the former."""
    others: tuple[str, list[Path], list[Path]] = ("", [], [])
    for purpose, key in (("calibration", "imatrix"), ("evaluation", "quality")):
        if purpose in texts:
            one = (f"models.{name}.{key}", *(list(map(Path, texts[purpose][kind])) for kind in ("text", "chat")))
            check_texts(*one, *others)
            others = one


def _check_server(name: str, spec: Mapping[str, Any]) -> OllamaServer | None:
    """Return the server that models are registered on, None if it is the store.

    Raises OllamakeError if a server that is demanded does not answer, or if there is nobody to answer the questions.
    """
    server = OllamaServer(spec["host"])
    served = spec["target"] != "store"
    if served:
        try:
            version = server.version()
            log.info("Ollama %s at %s", version, server.address)
            require_create_of_files(version, server.address)
        except ServerUnreachable as error:
            if spec["target"] == "server" or not error.nobody_there:
                raise
            served = False
    if spec["questions"] and not served and shutil.which("ollama") is None:
        raise OllamakeError(
            f"models.{name}.answers.questions: nobody can answer them: no Ollama server is used ({server.address}), and there is"
            " no `ollama` on PATH to serve the store. Install Ollama, set ollama.host, or leave out the questions."
        )
    return server if served else None


def _registration(server: OllamaServer | None, store: Path, results: Path) -> Registration:
    """Return where models are registered now, and the way of their weights.

    Where a server of this machine keeps its models it does not say; OLLAMA_MODELS is asked, else it is taken for this disk.
    """
    if server is None:
        return Registration("shared" if same_filesystem(store, results) else "copy", "store", str(store))
    models = os.environ.get("OLLAMA_MODELS")
    here = _THIS_MACHINE.search(server.address) and (not models or same_filesystem(Path(models), results))
    return Registration("server" if here else "elsewhere", "server", server.address)


def _plan(name: str, spec: Mapping[str, Any]) -> tuple[dict[str, Any], int, list[str]]:
    """Return the merge plan of a model, how many tensors get an update, and what may not be meant so."""
    key = f"models.{name}.base"
    base = read_checkpoint(spec["base"], key)
    require_base_config(base.folder / "config.json", base.config)
    require_vocabulary(base)
    adapters = [read_adapter(Path(adapter["path"]), adapter["weight"]) for adapter in spec["adapters"]]
    shapes = Path(spec["shapes"]) if spec.get("shapes") else None
    warnings = []
    for number, adapter in enumerate(adapters):
        adapter_key = f"models.{name}.adapter" if len(adapters) == 1 else f"models.{name}.adapters[{number}]"
        warnings += require_same_base(base, adapter, key, adapter_key, shapes) + unfinished_training(adapter.folder)
    plan = plan_merge(base, adapters, spec["dtype"])
    warnings += check_tokenizers(base.folder, [adapter.folder for adapter in adapters], plan)
    for warning in warnings:
        log.warning("%s", warning)
    tensors = [tensor for shard in plan["shards"] for tensor in shard["tensors"]]
    edited = sum(bool(tensor["edits"]) for tensor in tensors)
    log.info("%s: %d tensors in %d shards, %d of them get an update", name, len(tensors), len(plan["shards"]), edited)
    if routers := trained_routers(plan):
        log.info(
            "%s: the adapter has updates of %d routers, which are merged with it: %s, ...",
            name,
            len(routers),
            routers[0],
        )
    return plan, edited, warnings


def _counted(quantizations: Sequence[str], chosen: Sequence[str] = ()) -> list[str]:
    """Return the quantizations that are counted, each once: what is chosen for `auto`, or the largest that it quantizes to."""
    meant = list(chosen) or [CANDIDATES[0]]
    return list(dict.fromkeys(kind for asked in quantizations for kind in (meant if asked == _AUTO else [asked])))


def _assumption(quantizations: Sequence[str], chosen: Sequence[str]) -> str | None:
    if _AUTO not in quantizations:
        return None
    if chosen:
        return f"`auto` is counted as the plan that is there has it: {', '.join(_counted(quantizations, chosen))}"
    return (
        f"`auto` is counted as {CANDIDATES[0]}, the largest type that it quantizes to: the plan has not been made yet"
    )


def _gb(count: float) -> float:
    return round(count / 1e9, 2)


def refuse_incomplete(spec: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> None:
    """Raise OllamakeError for a specification by hand that lacks a key, or a ``now`` with one that is not known."""
    expected = {"base", "adapters", "made_here", "dtype", "quantizations", "target", "host", "store", "questions"}
    expected |= {"compiler_needed", "tools", "keep_merged", "keep_unquantized", "disk_gib"}
    missing = expected - spec.keys()
    if missing:
        raise OllamakeError(f"--spec lacks {', '.join(sorted(missing))}")
    now = now or {}
    unknown = now.keys() - {"chosen", "builds_llama_cpp", "jobs_run_here", "others"}
    if unknown:
        raise OllamakeError(f"--now has keys that are not known: {', '.join(sorted(unknown))}")
    for other in now.get("others", []):
        missing = {"name", "base_bytes", "quantizations"} - other.keys()
        if missing:
            raise OllamakeError(f"--now: a model of `others` lacks {', '.join(sorted(missing))}")
