"""
What the rules share: the checked configuration, the paths that follow from it, and the functions that give a rule its
inputs, params and resources. The only file that defines functions.

Nothing here writes, asks a server or reads weights; of a weight file only size, time and header are looked at.
"""

import gc
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.io import flag
from snakemake.path_modifier import PATH_MODIFIER_FLAG
from snakemake.persistence.file import FilePersistence
from snakemake_interface_executor_plugins.settings import ExecMode, SharedFSUsage
from snakemake_interface_scheduler_plugins.registry import SchedulerPluginRegistry
from snakemake_interface_storage_plugins.registry import StoragePluginRegistry

# A graph is millions of objects that stay: to look for garbage among them at Python's usual rate takes a tenth of the time.
gc.set_threshold(200_000, 20, 100)
import snakemake_durable_records
import snakemake_storage_plugin_ollama
from ollamake import job_needs, job_times
from ollamake.atomic_write import remove_leftovers
from ollamake.bitsandbytes_configuration import PRECISIONS, all_settings, weights_settings
from ollamake.bitsandbytes_needs import evaluate_bitsandbytes, quantize_bitsandbytes
from ollamake.chosen_types import chosen_warnings
from ollamake.configuration import AUTO, overlay_models, read_configuration
from ollamake.build_room import GIB
from ollamake.disk_peak import Registration, disk_peak
from ollamake.disk_turns import DiskTurns, Take
from ollamake.errors import OllamakeError, printable
from ollamake.file_digest import sha256_of
from ollamake.free_disk import MARGIN, free_bytes, require_writable
from ollamake.future_times import bring_back
from ollamake.hidden_keys import host_without_key
from ollamake.hub_room import bytes_to_fetch, with_downloads
from ollamake.imported_modules import modules_used_by
from ollamake.llama_cpp_programs import find_converter, find_program, program_identity
from ollamake.llama_cpp_source import VERSION as LLAMA_CPP_VERSION
from ollamake.memory_plan import is_here
from ollamake.ollama_server import OllamaServer
from ollamake.pinned_sources import FORMAT, pinned_sources
from ollamake.placeholders import require_no_placeholders
from ollamake.planned_quantization import quantization_of_plan
from ollamake.published_quality import CANDIDATES
from ollamake.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED
from ollamake.run_in_folder import end, enter, has_locks, left_jobs, name_run, stop_jobs_on_signals
from ollamake.rag_state import undone
from ollamake.record_seal import read_record
from ollamake.registration import chat_command
from ollamake.serving_configuration import CHECKPOINTS as CHECKPOINTS_TO_SERVE
from ollamake.shape import shipped_shape
from ollamake.source_files import SMALL_FILES, is_on_hub, merges_through_peft, reads_across_shards, source_files
from ollamake.weight_identity import header_digest, identity_of, seen_files

# The demo's files, fixed because the rules that make them name their outputs.
DEMO_BASE = "resources/demo/base"
DEMO_BASE_WEIGHTS = [f"{DEMO_BASE}/model-{shard:05d}-of-00003.safetensors" for shard in (1, 2, 3)]
DEMO_BASE_FILES = [
    f"{DEMO_BASE}/{name}"
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
]
DEMO_ADAPTER = "resources/demo/adapter"
DEMO_ADAPTER_WEIGHTS = [f"{DEMO_ADAPTER}/adapter_model.safetensors"]
DEMO_ADAPTER_FILES = [
    f"{DEMO_ADAPTER}/{name}"
    for name in ("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
]
MADE_HERE = {
    DEMO_BASE: (DEMO_BASE_WEIGHTS, DEMO_BASE_FILES),
    DEMO_ADAPTER: (DEMO_ADAPTER_WEIGHTS, DEMO_ADAPTER_FILES),
}

WEIGHT_SUFFIXES = (".safetensors", ".bin")
SHIPPED_SHAPES = os.path.relpath(os.path.join(workflow.basedir, "config/shapes"))
LLAMA_CPP = f"resources/llama.cpp/{LLAMA_CPP_VERSION}"
STARTED = time.time()
ALL_CORES = 1_000_000  # more than any machine has: Snakemake lowers it to --cores
SUBMITTED_MB = 400  # two Snakemakes run beside a submitted job: 320 MiB of resident size, measured

snakemake_durable_records.keep_records()


# One run ----------------------------------------------------------------------------------------------------------
def or_one_message(function, *arguments):
    """Call a function of the library; what it refuses ends the workflow in that one message."""
    try:
        return function(*arguments)
    except OllamakeError as error:
        raise WorkflowError(printable(str(error))) from None


def require_notes():
    """Before anything is noted: see that it can be."""
    if workflow.exec_mode == ExecMode.DEFAULT and not workflow.dryrun:
        # What Snakemake cannot write to its own log is on the terminal, too: no traceback for each line of it.
        logging.raiseExceptions = False
        or_one_message(require_writable, Path(".snakemake"))


def enter_folder():
    """Say that a Snakemake is at work here, as jobs on a cluster do, too; release what a killed one had locked."""
    name_run(Path())
    alone, others = enter(Path())
    if workflow.exec_mode != ExecMode.DEFAULT or not has_locks(Path()):
        return
    if alone:
        FilePersistence().cleanup_locks()
        print(
            "The last run in this folder was killed: its lock is released, what it finished is kept.", file=sys.stderr
        )
    elif others:
        print(
            f"Another Snakemake is at work in {os.getcwd()}: {', '.join(others)}. Wait until it has ended, or stop it with Ctrl-C"
            " or `kill`. As long as it is there, do not say --unlock.",
            file=sys.stderr,
        )


def tidy_results():
    """Before anything is compared: see that no result is newer than the clock, and that nothing half-made takes room."""
    if workflow.exec_mode != ExecMode.DEFAULT or workflow.dryrun:
        return
    remove_leftovers(Path("results"))
    if late := bring_back(Path("results"), STARTED):
        print(
            f"{len(late)} files in results/ (one of them {late[-1]}) are newer than the clock, so it was set back. Their times are"
            " set to long ago: what they are made of is compared by content.",
            file=sys.stderr,
        )


def begin_run():
    """Before the first job: end what a killed run has left, and let signals end the jobs of this one."""
    if workflow.exec_mode != ExecMode.DEFAULT:
        return
    left = left_jobs(Path())
    if left:
        print(f"Ending {len(left)} processes of a run in this folder that was killed.", file=sys.stderr)
        end(left)
    stop_jobs_on_signals(say_stopping)


def say_stopping(signal_name):
    """Say what a signal does."""
    STOPPED_BY.append(signal_name)
    print(f"{signal_name}: ending the jobs that run.", file=sys.stderr)


STOPPED_BY = []
require_notes()
enter_folder()
tidy_results()


# Configuration ----------------------------------------------------------------------------------------------------
def copied_bucket():
    """Return the bucket that the working directory is a copy of; None where files are only here. See profiles/s3."""
    if workflow.storage_settings.default_storage_provider is None:
        return None
    # The plugin for S3 is installed where it is used.
    from snakemake_working_copy import working_copy

    return or_one_message(working_copy, workflow)


def checked_configuration():
    """Return the configuration, typed. Models of the user's own file take the place of the demo."""
    given = workflow.config_settings.overwrite_config.get("models")
    if isinstance(given, dict):
        shipped = load_configfile("config/config.yaml") if os.path.exists("config/config.yaml") else {}
        config["models"] = overlay_models(shipped.get("models") or {}, given)
    schema = Path(workflow.basedir) / "config/schemas/config.schema.yaml"
    return or_one_message(read_configuration, config, schema)


@cache
def refuse_placeholders():
    """Refuse a configuration in which something is still to be filled in; looked at once."""
    or_one_message(require_no_placeholders, config)


@cache
def sources_of(name):
    """Return (weights, small files) of a model's base, then of each of its adapters, as paths."""
    refuse_placeholders()
    # What is wrong with a folder here is said before anything is asked of the hub.
    here = {
        folder: MADE_HERE.get(folder)
        or or_one_message(source_files, kind, folder, source_key(name, kind, folder), names_in_bucket(folder))
        for kind, folder in named_sources(name)
        if folder not in REFERENCES
    }
    sources = {path: source.paths for path, source in pinned_of(name).items()} | here
    return [sources[path] for _, path in named_sources(name)]


def refuse_wrong_folders():
    """Say at once what is wrong with a folder that is named, whatever is asked for."""
    for name in BUILT:
        if name not in ON_HUB:
            sources_of(name)


def named_sources(name):
    """Return ("base" or "adapter", what the configuration names) of a model's base, then of each of its adapters."""
    model = CONFIG.models[name]
    return [("base", model.base)] + [("adapter", adapter.path) for adapter in model.adapters]


@cache
def pinned_of(name):
    """Return what a model has from the hub, by what the configuration calls it: known once it is pinned."""
    if name not in ON_HUB:
        return {}
    return or_one_message(pinned_sources, Path(checkpoints.pin_sources.get(model=PIN_OWNER[name]).output[0]))


def folders_of(name):
    """Return the folders of a model's base and of its adapters, those from the hub where they are fetched to."""
    pinned = pinned_of(name)
    base, *adapters = [pinned[path].folder if path in pinned else path for _, path in named_sources(name)]
    return base, adapters


def weighted_adapters(name):
    """Return path and weight of each of a model's adapters."""
    _, folders = folders_of(name)
    return [vars(adapter) | {"path": path} for adapter, path in zip(CONFIG.models[name].adapters, folders)]


def source_key(name, kind, folder):
    """Return the key of a base or an adapter for messages, with the place in the bucket where there is nothing of it."""
    nothing = BUCKET and not names_in_bucket(folder)
    return f"models.{name}.{kind}{f' (nothing is in {BUCKET.query(folder)})' if nothing else ''}"


def names_in_bucket(folder):
    """Return the names of a folder's files in the bucket."""
    return BUCKET.names_in(folder) if BUCKET else frozenset()


def fetch_small_files():
    """Fetch from the bucket what says of a base or an adapter which weights it has, and how they are merged."""
    for model in CONFIG.models.values():
        for folder in (model.base, *(adapter.path for adapter in model.adapters)):
            BUCKET.fetch(f"{folder}/{name}" for name in SMALL_FILES)


BUCKET = copied_bucket()
CONFIG = checked_configuration()
if BUCKET:
    fetch_small_files()
    # A source tree of which no rule names each file, and programs of this machine.
    BUCKET.leave_here("resources/llama.cpp/")
THREADS = CONFIG.threads or int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count())
BUILD_JOBS = CONFIG.threads or 0  # 0: as many as the job may use cores
# What is null in the configuration is the environment's, so that another OLLAMA_HOST counts as a change.
HOST = or_one_message(host_without_key, CONFIG.host or os.environ.get("OLLAMA_HOST"))
PLACE = {"target": CONFIG.target, "host": HOST, "store": CONFIG.store}
BUILT = list(CONFIG.models)
# What the configuration names of the Hugging Face hub; models of which something is there, and those of which the base is.
REFERENCES = {
    path for name in BUILT for _, path in named_sources(name) if is_on_hub(path) and not names_in_bucket(path)
}
ON_HUB = [name for name in BUILT if any(path in REFERENCES for _, path in named_sources(name))]
BASE_ON_HUB = [name for name in ON_HUB if CONFIG.models[name].base in REFERENCES]
# A base that is only built for a comparison is the one that its fine-tune was pinned with.
PIN_OWNER = {
    name: (
        next(
            other
            for other in ON_HUB
            if not CONFIG.models[other].is_derived and CONFIG.models[other].base == CONFIG.models[name].base
        )
        if CONFIG.models[name].is_derived
        else name
    )
    for name in ON_HUB
}
# Models that are their base's GGUF with the adapter beside it -> the model whose GGUF that is.
ADAPTER_ONLY = {name: CONFIG.models[name].served_base for name in BUILT if CONFIG.models[name].served_base}
# Of these, whose weights Ollama has already -> the name of the model there.
FROM_OLLAMA = {name: CONFIG.models[name].from_ollama for name in ADAPTER_ONLY if ADAPTER_ONLY[name] == name}
refuse_wrong_folders()
# The order in which models are built: as the configuration has them, and a base before the first that is compared with it.
TURNS = list(
    dict.fromkeys(
        one
        for name in BUILT
        for one in (CONFIG.models[name].measured_base, CONFIG.models[name].served_base, name)
        if one
    )
)
MEASURED = [name for name in BUILT if CONFIG.models[name].quality.is_measured]
CALIBRATED = [name for name in BUILT if CONFIG.models[name].calibration.is_given]
MEASURES_CHAT = any(CONFIG.models[name].quality.evaluation.chat for name in MEASURED)
MEASURED_BASES = {CONFIG.models[name].measured_base for name in MEASURED} - {None}
PROGRAMS = [
    "llama-quantize",
    "llama-tokenize",
    "llama-fit-params",
    *["llama-imatrix"] * bool(CALIBRATED),
    *["llama-perplexity"] * bool(MEASURED),
    *["llama-bench"] * any(CONFIG.models[name].quality.speed for name in MEASURED),
]
# Shapes to plan that are no merge of ours: bases that are not here, and alternatives.
SHAPES = sorted({CONFIG.models[name].base for name in BASE_ON_HUB} | set(CONFIG.alternatives))


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG.models)),
    quant="[A-Z0-9_]+",
    asker="|".join(map(re.escape, CONFIG.models)),
    shard=r"\d{5}",
    nshards=r"\d{5}",
    program="llama-[a-z-]+",
    shape="|".join(map(re.escape, SHAPES)) or "none",
    purpose="calibration|evaluation",
    checkpoint="|".join(CHECKPOINTS_TO_SERVE),
    precision="|".join(PRECISIONS),
    measured="[A-Z0-9_]+|base",
    user="[A-Z0-9_]+|imatrix|quality-.+|base-.+|nf4|int8",
    repo="[^/]+/[^/]+",
    tree="[0-9a-f]{12}",
    weights_file=r"(?!adapter_model\.)[^/]+\.safetensors",
    small_file=r"(?!(headers\.json|checked)$)([^/]+(?<!\.safetensors)|adapter_model\.safetensors)",


# Targets ----------------------------------------------------------------------------------------------------------
def of_each_built(pattern):
    """Expand a pattern over the models."""
    return expand(pattern, model=BUILT)


def of_each_merged(pattern):
    """Expand a pattern over the models that have weights of their own."""
    return [file for file in of_each_built(pattern) if file not in expand(pattern, model=list(ADAPTER_ONLY))]


def of_each_quantization(pattern, as_input=str):
    """Expand a pattern over the models and the quantizations of each; that of an automatic model is known after its plan."""

    def of_model(name):
        return lambda wildcards: [as_input(of_weights(pattern, name, quant)) for quant in quantizations_of(name)]

    fixed = [name for name in BUILT if not CONFIG.models[name].is_automatic]
    return [
        as_input(of_weights(pattern, name, quant)) for name in fixed for quant in CONFIG.models[name].quantizations
    ] + [of_model(name) for name in BUILT if name not in fixed]


def of_weights(pattern, name, quant):
    """Fill in a pattern; its {weights} is the model whose GGUF is registered: the base of one that is served as an adapter."""
    return pattern.format(model=name, quant=quant, weights=ADAPTER_ONLY.get(name, name))


def quantizations_of(name):
    """Return a model's quantizations, for which the plan of an automatic one must have been made."""
    model = CONFIG.models[name]
    if not model.is_automatic:
        return model.quantizations
    checkpoints.take_recommendation.get(model=name)
    return chosen_first(model, PLAN.format(model=name))


def measured_types(name):
    """Return the types of a model that are measured, the registered ones first."""
    return list(dict.fromkeys((*quantizations_of(name), *CONFIG.models[name].quality.compare)))


def of_each_guarded(pattern):
    """Expand a pattern over the quantizations that must be within limits to be registered."""
    guards = [name for name in MEASURED if CONFIG.models[name].quality.guards_registration]

    def of_model(name):
        return lambda wildcards: [pattern.format(model=name, quant=quant) for quant in quantizations_of(name)]

    return [of_model(name) for name in guards]


def quantizations_so_far(name):
    """Return a model's quantizations as far as they are known: none of an automatic one without a plan."""
    model, plan = CONFIG.models[name], PLAN.format(model=name)
    if not model.is_automatic:
        return model.quantizations
    try:
        return chosen_first(model, plan) if os.path.exists(plan) else ()
    except WorkflowError:
        return ()  # Nothing fits: said where the quantization is needed.


def markers_so_far():
    """Return the markers of all models as far as they are known."""
    return [MARKER.format(model=name, quant=quant) for name in BUILT for quant in quantizations_so_far(name)]


def chosen_first(model, plan):
    """Return the type that a plan recommends, and what else the model is built in."""
    chosen = or_one_message(quantization_of_plan, Path(plan))
    return (chosen, *(quant for quant in model.quantizations if quant != chosen))


def of_each_shard(name, pattern, **wildcards):
    """Expand a pattern over the shards of one model."""
    count = len(sources_of(name)[0][0])
    return [
        pattern.format(model=name, shard=f"{shard:05d}", nshards=f"{count:05d}", **wildcards)
        for shard in range(1, count + 1)
    ]


def shards_wanted(name, pattern, **wildcards):
    """Return the same as targets: of a base on the hub a function, since how many there are is known when it is pinned."""
    if name in BASE_ON_HUB:
        return [lambda _: of_each_shard(name, pattern, **wildcards)]
    return of_each_shard(name, pattern, **wildcards)


def checkpoint_record(name, checkpoint):
    """Return the record of a bitsandbytes checkpoint that is served; nothing of another."""
    return f"results/{name}/bitsandbytes/{checkpoint}.json" if checkpoint in ("nf4", "int8") else []


def released_unquantized(name, users):
    """Return a function of wildcards: for each of some users of a model's unquantized GGUF, that it needs it no more."""
    return lambda wildcards: [f"results/{name}/gguf/{name}.{user}.released" for user in users(name)]


def quantizing(name):
    """Return the users of a model's unquantized GGUF that quantize it: the types and their importance matrix."""
    types = list(measured_types(name) if name in MEASURED else quantizations_of(name))
    served = [quant for other in served_beside(name) for quant in quantizations_of(other)]
    types = list(dict.fromkeys([*types, *served]))
    calibrated = CONFIG.models[name].calibration.is_given
    return [*types, *["imatrix"] * (calibrated and any(QUANTIZATION_TYPES[kind].uses_imatrix for kind in types))]


def comparing(name):
    """Return the users of a model's unquantized GGUF that compare with it, and with that of which it is the base."""
    measured = measured_types(name) if name in MEASURED else []
    base = ["base"] if CONFIG.models[name].measured_base and measured else []
    as_base = [other for other in MEASURED if CONFIG.models[other].measured_base == name]
    return [f"quality-{one}" for one in [*measured, *base]] + [f"base-{other}" for other in as_base]


MERGED_SHARD = "results/{model}/merged/model-{shard}-of-{nshards}.safetensors"
MERGE_RECORD = "results/{model}/merge_records/model-{shard}-of-{nshards}.json"
CHECKED = of_each_built("results/{model}/inputs.json")
MERGED = [
    file for name in BUILT if name not in ADAPTER_ONLY for file in shards_wanted(name, MERGED_SHARD)
] + of_each_merged("results/{model}/merged/model_files.json")
BITSANDBYTES_SHARD = "results/{model}/bitsandbytes/{precision}/model-{shard}-of-{nshards}.safetensors"
BITSANDBYTES_RECORD = "results/{model}/bitsandbytes_records/{precision}/model-{shard}-of-{nshards}.json"
BITSANDBYTES_PLAN = "results/{model}/bitsandbytes_records/{precision}/plan.json"
BITSANDBYTES_CHECKPOINT = "results/{model}/bitsandbytes/{precision}.json"
QUALITY_OF_CHECKPOINT = "results/{model}/quality/{precision}.json"
CHECKPOINTS = [(name, precision) for name in BUILT for precision in CONFIG.models[name].bitsandbytes.types]
BITSANDBYTES = [
    file
    for name, precision in CHECKPOINTS
    for file in (
        *shards_wanted(name, BITSANDBYTES_SHARD, precision=precision),
        f"results/{name}/bitsandbytes/{precision}/config.json",
        f"results/{name}/bitsandbytes/{precision}/model.safetensors.index.json",
        BITSANDBYTES_CHECKPOINT.format(model=name, precision=precision),
    )
]
MERGE_REPORTS = [of_each_merged(f"results/{{model}}/merge_report.{kind}") for kind in ("json", "svg")]
UNQUANTIZED = "results/{model}/gguf/{model}.unquantized.gguf"
UNQUANTIZED_RECORD = "results/{model}/gguf/{model}.unquantized.json"
CONVERSION = "results/{model}/gguf/{model}.conversion.json"
PLAN = "results/{model}/plan.json"
PLANNED = [name for name, model in CONFIG.models.items() if not model.is_derived]
PLANS = expand("results/{model}/plan.{kind}", model=PLANNED, kind=["json", "md", "svg"])
ADAPTER_GGUF = "results/{model}/gguf/{model}.adapter.gguf"
ADAPTER_RECORD = "results/{model}/gguf/{model}.adapter.json"
WEIGHTS = "results/{weights}/gguf/{weights}.{quant}.gguf"
WEIGHTS_RECORD = "results/{weights}/gguf/{weights}.{quant}.json"
GGUFS = of_each_quantization(WEIGHTS) + expand(ADAPTER_GGUF, model=list(ADAPTER_ONLY))
MODELFILES = of_each_quantization("results/{model}/ollama/{quant}/Modelfile")
MARKER = "results/{model}/ollama/{quant}/registered.json"
MARKERS = of_each_quantization(MARKER)
TEMPLATE_CHECK = "results/{model}/ollama/template_check.json"
TEMPLATE_CHECKS = [TEMPLATE_CHECK.format(model=name) for name in BUILT if not CONFIG.models[name].is_derived]
QUALITY_SUMMARY = "results/{model}/quality.json"
REFERENCE_LOGITS = "results/{model}/quality/reference.kld"
QUALITY_OF_ONE = "results/{model}/quality/{measured}.json"
SPEED_OF_ONE = "results/{model}/quality/{quant}.speed.json"
VERDICT = "results/{model}/quality/{quant}.verdict.json"
QUALITY = [f"results/{name}/quality.{kind}" for name in MEASURED for kind in ("json", "md", "svg")] + [
    f"results/{name}/quality/overlap.json" for name in MEASURED if CONFIG.models[name].calibration.is_given
]
ANSWERS_OF_ONE = "results/{model}/ollama/{quant}/answers.{asker}.json"
ANSWERS = [
    f"results/{name}/answers.{kind}"
    for name in BUILT
    if CONFIG.models[name].answers.questions
    for kind in ("json", "md", "verdict.json")
]
RAG_CONFIG = "results/{model}/ollama/rag_config.json"
RAG_CONFIGS = [RAG_CONFIG.format(model=name) for name in BUILT if CONFIG.models[name].rag]
SERVING_RECORD = "results/{model}/serve/{checkpoint}/serving.json"
SERVED_ELSEWHERE = [
    (name, checkpoint)
    for name in BUILT
    if CONFIG.models[name].serving
    for checkpoint in CONFIG.models[name].serving.checkpoints
]
SERVING = [SERVING_RECORD.format(model=name, checkpoint=checkpoint) for name, checkpoint in SERVED_ELSEWHERE]
# What the servers read: with a plan for an automatic model, the merged weights would else be made for a GGUF only.
SERVED_WEIGHTS = [
    shards_wanted(name, MERGED_SHARD) if checkpoint == "merged" else checkpoint_record(name, checkpoint)
    for name, checkpoint in SERVED_ELSEWHERE
]


# Pages for the report, of the models that are registered for themselves and not for a comparison.
OVERVIEWS = [f"results/{name}/overview.html" for name in BUILT if not CONFIG.models[name].is_derived]
PAGES = (
    [f"results/{name}/plan.html" for name in BUILT if name in PLANNED]
    + [f"results/{name}/quality.html" for name in MEASURED]
    + [file.removesuffix(".md") + ".html" for file in ANSWERS if file.endswith(".md")]
)


# Registered models are outputs that exist as long as Ollama has them: a storage of Snakemake's ------------------------
UNREACHABLE = set()


def take_unreachable(error):
    """Say once that a server does not answer; return whether its models are to be registered.

    They are if the configuration demands a server: then stop_without_server ends the run before its first job. A dry run
    takes them for registered and plans the rest. Of a server that is no longer the configured one nothing is wanted: its
    models are registered elsewhere now.
    """
    if CONFIG.target == "store" or error.address != OllamaServer(PLACE["host"]).address:
        return False
    demanded = CONFIG.target == "server" and not workflow.dryrun
    if str(error) not in UNREACHABLE and not demanded:
        print(
            f"{printable(str(error))}; whether its models are still registered is not known, and taken for granted.",
            file=sys.stderr,
        )
    UNREACHABLE.add(str(error))
    return demanded


def stop_without_server():
    """End a run whose registrations can neither be checked nor made."""
    if UNREACHABLE and CONFIG.target == "server":
        remedy = "Start it (`ollama serve`), or build what needs no server: snakemake modelfiles."
        raise WorkflowError(f"{'; '.join(UNREACHABLE)}. {remedy}")


snakemake_storage_plugin_ollama.StorageProvider.unreachable = staticmethod(take_unreachable)
StoragePluginRegistry().register_plugin("snakemake_storage_plugin_ollama", snakemake_storage_plugin_ollama)


storage ollama:
    provider="ollama",


REGISTERED_MODEL = storage.ollama(f"ollama://{MARKER}")


def registered_model(marker):
    """Return the registered model of a marker as an input that is looked for, not fetched."""
    return storage.ollama(f"ollama://{marker}", retrieve=False)


REGISTERED_MODELS = of_each_quantization(MARKER, registered_model)
VERDICTS = of_each_guarded(VERDICT)
# Where the unquantized GGUF is not kept: that all which is made of it has been made.
PASSING = [] if CONFIG.keep_unquantized else [name for name in BUILT if name not in ADAPTER_ONLY]
QUANTIZED = [released_unquantized(name, quantizing) for name in PASSING]
COMPARED = [released_unquantized(name, comparing) for name in PASSING]
# The same of the merged shards, which beside the conversion these use.
USED_MERGED = [
    f"results/{name}/bitsandbytes_records/{user}.released"
    for name, precision in CHECKPOINTS
    for user in (precision, *[f"quality-{precision}"] * CONFIG.models[name].bitsandbytes.evaluate)
    if not CONFIG.keep_merged
]
EVERYTHING = [
    CHECKED,
    PLANS,
    MERGE_REPORTS,
    BITSANDBYTES,
    USED_MERGED,
    GGUFS,
    QUANTIZED,
    COMPARED,
    QUALITY,
    VERDICTS,
    MODELFILES,
    MARKERS,
    REGISTERED_MODELS,
    TEMPLATE_CHECKS,
    ANSWERS,
    RAG_CONFIGS,
    SERVING,
    SERVED_WEIGHTS,
    OVERVIEWS,
    PAGES,
]


# Code is an input -------------------------------------------------------------------------------------------------
def everywhere(path):
    """Return a file of the workflow or of a program, which is no object of a bucket: each machine has it in the same place.

    The flag is that of paths which Snakemake does not make into objects. With local() a job would be one of this machine.
    """
    return flag(path, PATH_MODIFIER_FLAG)


def script(rule_name):
    """Return the path of a rule's script."""
    return os.path.relpath(os.path.join(workflow.basedir, "scripts", f"{rule_name}.py"))


@cache
def code_digest(rule_name):
    """Return what changes when a rule's script, or a library module that it really uses, changes.

    One param: the modules as inputs would be most of the graph's files, each looked at for every job.
    """
    file = Path(script(rule_name)).resolve()
    return hashlib.sha256("".join(map(source_digest, [file, *modules_used_by(file)])).encode()).hexdigest()


@cache
def source_digest(file):
    """Return the sha256 of a small file, of the code or of the user's, which many rules share."""
    return sha256_of(file)


def demo_text(name):
    """Return the path of one of the demo's texts."""
    return everywhere(os.path.relpath(os.path.join(workflow.basedir, "config/demo", name)))


# Inputs -----------------------------------------------------------------------------------------------------------
def kept(path, keep):
    """Return an output that stays, or one that goes when the last job that needs it is done."""
    return path if keep else passing(path)


def passing(path):
    """Return an output that goes when the last job that needs it is done.

    It is no object of a bucket as long as all jobs run on one machine, or share its disk.
    """
    if BUCKET and SharedFSUsage.INPUT_OUTPUT in workflow.storage_settings.shared_fs_usage:
        BUCKET.leave_here(path)
    return temp(path)


def brought(path):
    """Return a file that the user brought as an input: an object if the bucket has it, else a file of this machine.

    What rules make or fetch is what they make it.
    """
    made = os.path.dirname(path) in MADE_HERE or is_fetched(path)
    return path if BUCKET is None or path in BUCKET or made else local(path)


def is_fetched(path):
    """Return whether a file is one that is fetched from the hub."""
    return path.startswith("resources/hub/")


def weights_input(path):
    """Return a weight file as an input: the demo's as it is, the user's without regard to its time."""
    return path if is_made_here(path) else ancient(brought(path))


@cache
def is_made_here(path):
    """Return whether a file of base or adapter is the demo's, which rules make."""
    return os.path.dirname(path) in MADE_HERE


def small_files(wildcards):
    """Return config, tokenizer and adapter_config: everything beside the weights, compared by content."""
    return [brought(file) for weights, files in sources_of(wildcards.model) for file in files]


def small_contents(wildcards):
    """Return what the user's small files hold: an older one that takes the place of another is a change, too."""
    return contents_of(file for _, files in sources_of(wildcards.model) for file in files)


def contents_of(files):
    """Return path -> sha256 of files that the user brought and that are here."""
    if BUCKET:
        return ""  # Which of them are here differs from run to run; objects have times of the bucket's.
    mine = [file for file in files if not is_made_here(file) and not file.startswith("resources/hub/")]
    return spec(**{file: source_digest(Path(file)) for file in mine if os.path.exists(file)})


def users_small_files(wildcards):
    """Return the small files that the user brought: what can be checked before anything has run."""
    files = [file for file in small_files(wildcards) if not is_made_here(file)]
    # The check reads headers of weights, which are here unless a bucket has them.
    in_bucket = [
        weights_input(file)
        for weights, _ in sources_of(wildcards.model)
        for file in weights
        if BUCKET and file in BUCKET and not is_fetched(file)
    ]
    return [*files, *hub_headers(wildcards), *hub_adapters(wildcards), *in_bucket]


def hub_headers(wildcards):
    """Return the headers of a base on the hub, in place of its weights."""
    model = CONFIG.models[wildcards.model]
    return [f"{pinned_of(wildcards.model)[model.base].folder}/headers.json"] if wildcards.model in BASE_ON_HUB else []


def hub_adapters(wildcards):
    """Return the weights of adapters on the hub."""
    pinned = pinned_of(wildcards.model)
    adapters = [pinned[adapter.path] for adapter in CONFIG.models[wildcards.model].adapters if adapter.path in pinned]
    return [ancient(file) for adapter in adapters for file in adapter.paths[0]]


def all_headers(wildcards):
    """Return what has the headers of all weight files: these files, of a base on the hub what was fetched of them."""
    (base, _), *_ = sources_of(wildcards.model)
    headers = hub_headers(wildcards) or [weights_input(file) for file in base]
    return [*headers, *adapter_weights(wildcards)]


def fetched_base(wildcards):
    """Return the weight files of a base on the hub; nothing of another, which is here."""
    (base, _), *_ = sources_of(wildcards.model)
    return [ancient(file) for file in base] if wildcards.model in BASE_ON_HUB else []


def weights_made_here(wildcards):
    """Return the weight files that rules make; what the user brought is in a rule's `spec`, and need not be looked at again."""
    return [file for weights, files in sources_of(wildcards.model) for file in weights if is_made_here(file)]


def shard_weights(wildcards):
    """Return the weight files that one shard is merged from: the base's shard and the adapters, seldom other shards."""
    (base, _), *adapters = sources_of(wildcards.model)
    own = base[int(wildcards.shard) - 1]
    others = [file for file in base if file != own] if needs_other_shards(wildcards.model) else []
    return [weights_input(file) for file in (own, *others, *(file for weights, _ in adapters for file in weights))]


def configs_of(name):
    """Return config.json of a model's base and adapter_config.json of its adapters: files, or what is pinned of them."""
    pinned = pinned_of(name)
    found = zip(named_sources(name), sources_of(name))
    return [pinned[path].config if path in pinned else files[0] for (_, path), (_, files) in found]


@cache
def needs_other_shards(name):
    """Return whether the merge of one of a model's shards may read others."""
    return reads_across_shards(*configs_of(name))


@cache
def needs_peft(name):
    """Return whether a model's adapters go through peft's own layers."""
    return merges_through_peft(*configs_of(name)[1:])


def conversion_to_record(wildcards):
    """Return what was converted, as an input that starts its recording.

    Where the GGUF is not kept, it is converted again for one more job; that is recorded only if something has changed.
    """
    conversion = CONVERSION.format(**wildcards)
    if CONFIG.keep_unquantized:
        return conversion
    record = UNQUANTIZED_RECORD.format(**wildcards)
    return followed_until_done(conversion, "record_conversion", conversion_spec(wildcards), record)


def unquantized_for(name, is_made):
    """Return the unquantized GGUF of a model as an input of a job, of which is known whether it is made.

    Snakemake starts each job that has a temp() file as an input that is missing and about to be made again, ancient() or
    not. So where the GGUF is not kept, a job that is done has what was converted in its place, under the GGUF's name:
    a set of inputs that has changed would start it, too. The flag is Snakemake's for files that it keeps under another
    path than the workflow names. If another change starts that job, release_unquantized has the GGUF made.
    """
    gguf = UNQUANTIZED.format(model=name)
    if CONFIG.keep_unquantized or not is_made:
        return ancient(gguf)
    return in_place_of(gguf, CONVERSION.format(model=name))


def in_place_of(path, record):
    """Return a record as an input of a job that is done, under the name of the file that the job was done with."""
    return flag(ancient(record), "sourcecache_entry", BUCKET.query(path) if BUCKET else path)


def unquantized_to_quantize(wildcards):
    """Return the GGUF that is quantized; its record says when it has changed."""
    quantized = "results/{model}/gguf/{model}.{quant}".format(**wildcards)
    made = is_done("quantize", quantization_spec(wildcards), f"{quantized}.json", f"{quantized}.gguf")
    return unquantized_for(wildcards.model, made)


def unquantized_to_calibrate(wildcards):
    """Return the GGUF of which an importance matrix is computed."""
    imatrix = "results/{model}/gguf/{model}.imatrix".format(**wildcards)
    made = is_done("compute_imatrix", imatrix_spec(wildcards), f"{imatrix}.json", f"{imatrix}.gguf")
    return unquantized_for(wildcards.model, made)


def unquantized_to_compare(wildcards):
    """Return the GGUF that others are compared with."""
    return unquantized_for(wildcards.model, is_measured(wildcards))


def is_measured(wildcards):
    """Return whether a quantization, or the base, has been measured."""
    return is_done("evaluate_quality", measuring_spec(wildcards), QUALITY_OF_ONE.format(**wildcards))


def user_of_unquantized(wildcards):
    """Return what one of the users of the unquantized GGUF makes of it."""
    kind, _, of = wildcards.user.partition("-")
    if kind == "quality":
        return QUALITY_OF_ONE.format(model=wildcards.model, measured=of)
    if kind == "base":
        return QUALITY_OF_ONE.format(model=of, measured="base")
    return f"results/{wildcards.model}/gguf/{wildcards.model}.{wildcards.user}.json"


def merged_shards(wildcards):
    """Return the merged shards of a model; their records say when they have changed."""
    return [ancient(shard) for shard in of_each_shard(wildcards.model, MERGED_SHARD)]


def adapter_weights(wildcards):
    """Return the weight files of a model's adapters."""
    return [weights_input(file) for weights, _ in sources_of(wildcards.model)[1:] for file in weights]


def weights_served(wildcards):
    """Return the GGUF that a model is registered with; its record says when it has changed."""
    return ancient(of_weights(WEIGHTS, wildcards.model, wildcards.quant))


def record_served(wildcards):
    """Return the record of the GGUF that a model is registered with."""
    return of_weights(WEIGHTS_RECORD, wildcards.model, wildcards.quant)


def unquantized_record(wildcards):
    """Return the record of the GGUF whose tokenizer a registered model has: the unquantized one, or Ollama's."""
    (kind,) = CONFIG.models[wildcards.model].quantizations if wildcards.model in FROM_OLLAMA else ["unquantized"]
    return of_weights(WEIGHTS_RECORD, wildcards.model, kind)


def adapter_served(wildcards):
    """Return the GGUF of the adapter that a model is registered with, if it is; its record says when it has changed."""
    return ancient(ADAPTER_GGUF.format(model=wildcards.model)) if wildcards.model in ADAPTER_ONLY else []


def adapter_record(wildcards):
    """Return the record of the adapter that a model is registered with, if it is."""
    return ADAPTER_RECORD.format(model=wildcards.model) if wildcards.model in ADAPTER_ONLY else []


def served_beside(name):
    """Return the models that are served as adapters beside the GGUFs that are built of a base."""
    return [other for other, base in ADAPTER_ONLY.items() if base == name and other not in FROM_OLLAMA]


def served_types(name):
    """Return the types of a base that models which are served as adapters use; `auto` for one that a plan chooses."""
    models = [CONFIG.models[other] for other in served_beside(name)]
    return sorted({quant for model in models for quant in [AUTO] * model.is_automatic + list(model.quantizations)})


def merge_records(wildcards):
    """Return the records of a model's merged shards."""
    return of_each_shard(wildcards.model, MERGE_RECORD)


def base_config(wildcards):
    """Return the config.json of a model's base."""
    return next(file for file in sources_of(wildcards.model)[0][1] if os.path.basename(file) == "config.json")


def is_in_bitsandbytes(wildcards):
    """Return whether a merged shard has been quantized by bitsandbytes."""
    files = (BITSANDBYTES_RECORD.format(**wildcards), BITSANDBYTES_SHARD.format(**wildcards))
    return is_done("quantize_bitsandbytes", bitsandbytes_shard_spec(wildcards), *files)


def merged_to_quantize(wildcards):
    """Return a merged shard as an input of its quantization; its record says when it has changed.

    Where merged shards are not kept, a job that is done has the record in its place: see unquantized_for. If another change
    starts that job, release_merged has the shard made.
    """
    shard, record = MERGED_SHARD.format(**wildcards), MERGE_RECORD.format(**wildcards)
    if CONFIG.keep_merged or not is_in_bitsandbytes(wildcards):
        return ancient(shard)
    return in_place_of(shard, record)


def merged_record_to_quantize(wildcards):
    """Return the record of a merged shard, which starts nothing where the same is merged once more for another job."""
    record = MERGE_RECORD.format(**wildcards)
    return record if CONFIG.keep_merged or not is_in_bitsandbytes(wildcards) else ancient(record)


def is_checkpoint_measured(wildcards):
    """Return whether a bitsandbytes checkpoint has been measured."""
    record = QUALITY_OF_CHECKPOINT.format(**wildcards)
    return is_done("evaluate_bitsandbytes", checkpoint_measuring_spec(wildcards), record)


def merged_to_compare(wildcards):
    """Return the merged shards that a checkpoint is compared with; the checkpoint's record says when they have changed."""
    files = zip(*(of_each_shard(wildcards.model, pattern) for pattern in (MERGED_SHARD, MERGE_RECORD)))
    if CONFIG.keep_merged or not is_checkpoint_measured(wildcards):
        return [ancient(shard) for shard, _ in files]
    return [in_place_of(shard, record) for shard, record in files]


def user_of_merged(wildcards):
    """Return what one of the users of the merged shards makes of them."""
    kind, _, of = wildcards.user.rpartition("-")
    made = QUALITY_OF_CHECKPOINT if kind == "quality" else BITSANDBYTES_CHECKPOINT
    return made.format(model=wildcards.model, precision=of)


def measured_checkpoints(wildcards):
    """Return what was measured of a model's bitsandbytes checkpoints, where they are."""
    asked = CONFIG.models[wildcards.model].bitsandbytes
    return expand(QUALITY_OF_CHECKPOINT, model=wildcards.model, precision=asked.types if asked.evaluate else ())


def bitsandbytes_shards(wildcards):
    """Return the shards of a bitsandbytes checkpoint; their records say when they have changed."""
    shards = of_each_shard(wildcards.model, BITSANDBYTES_SHARD, precision=wildcards.precision)
    return [ancient(shard) for shard in shards]


def bitsandbytes_records(wildcards):
    """Return the records of the shards of a bitsandbytes checkpoint."""
    return of_each_shard(wildcards.model, BITSANDBYTES_RECORD, precision=wildcards.precision)


def program_files(program):
    """Return a program of llama.cpp as inputs: nothing if it was found, else the files that the build makes."""
    if found_program(program):
        return []
    return [ancient(f"{LLAMA_CPP}/bin/{program}"), f"{LLAMA_CPP}/bin/{program}.json"]


@cache
def found_program(program):
    """Return the program in tools.llama_cpp or on PATH, or None.

    Of llama-perplexity only the one that is built here reads conversations: none is looked for on PATH then.
    """
    if program == "llama-perplexity" and MEASURES_CHAT and CONFIG.llama_cpp is None:
        return None
    return or_one_message(find_program, program, CONFIG.llama_cpp)


@cache
def program_if_found(program):
    """Return a list of the program, which is used if it is there."""
    if program == "llama-perplexity":
        return [str(found)] if (found := found_program(program)) else []
    try:
        found = find_program(program, CONFIG.llama_cpp)
    except OllamakeError:
        return []  # tools.llama_cpp names a folder without it
    return [str(found)] if found else []


@cache
def builds_fit_params():
    """Return whether llama-fit-params is built: with llama-quantize, not where llama.cpp was found without it."""
    return found_program("llama-quantize") is None and not program_if_found("llama-fit-params")


def fit_params_files():
    """Return llama-fit-params as inputs; nothing where it was found, and where a formula takes its place."""
    return program_files("llama-fit-params") if builds_fit_params() else []


def fit_params_path():
    """Return where llama-fit-params is or will be; nothing where a formula takes its place."""
    return program_path("llama-fit-params") if builds_fit_params() else program_if_found("llama-fit-params")


def require_measuring_programs():
    """Refuse a folder in tools.llama_cpp that lacks a program to measure with, before anything runs."""
    for program in PROGRAMS:
        if program in ("llama-imatrix", "llama-perplexity", "llama-bench"):
            found_program(program)


def program_path(program):
    """Return where a program of llama.cpp is or will be."""
    return str(found_program(program) or f"{LLAMA_CPP}/bin/{program}")


def converter_files():
    """Return llama.cpp's converter: of the source tree that the user named, else of the fetched one."""
    found = find_converter(CONFIG.llama_cpp)
    return (
        [everywhere(str(found))] if found else [f"{LLAMA_CPP}/source/convert_hf_to_gguf.py", f"{LLAMA_CPP}/source.json"]
    )


def smallest_quantization(pattern):
    """Return a function of wildcards: a pattern with a model's smallest quantization."""

    def path(wildcards):
        quantizations = quantizations_of(wildcards.model)
        smallest = min(quantizations, key=lambda name: QUANTIZATION_TYPES[name].bits_per_weight)
        return of_weights(pattern, wildcards.model, smallest)

    return path


def is_done(rule_name, spec, record, *others):
    """Return whether a job has nothing to do of its own accord: its outputs are there, the record made with ``spec``."""
    if rule_name in workflow.dag_settings.forcerun or not all(map(is_there, (record, *others))):
        return False
    try:
        return json.loads(Path(record).read_text(encoding="utf-8"))["spec"] == spec
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_there(path):
    """Return whether a file is there: in the bucket, if the working directory is a copy of one and this run has not made it."""
    if BUCKET is None or BUCKET.is_only_here(path):
        return os.path.exists(path)
    return path in BUCKET or (os.path.exists(path) and os.stat(path).st_mtime >= STARTED)


def followed_until_done(marker, rule_name, spec, record):
    """Return a marker as an input that starts a job only if the job has something to do anyway.

    A registration that is renewed for another prompt, or because the server has lost it, changes nothing that was found
    out about the model before. But Snakemake does not look at a job at all that follows one to be run by an ancient edge
    alone, so the edge is ancient only if what the job was done with, which stands in its output, is as it was.
    """
    return ancient(marker) if is_done(rule_name, spec, record) else marker


def judged_before(name, rule_name, spec, record):
    """Return the quality that a registration waited for, as an input of what follows the registration.

    Judging again registers nothing again. But Snakemake does not look at what is behind that registration either, unless
    an edge that is not ancient leads there from what runs: it does if the job has something to do of its own accord.
    """
    if not (name in MEASURED and CONFIG.models[name].quality.guards_registration):
        return []
    return followed_until_done(QUALITY_SUMMARY.format(model=name), rule_name, spec, record)


def judged_before_check(wildcards):
    """Return the quality that was judged before the prompts of a model are checked."""
    record = TEMPLATE_CHECK.format(model=wildcards.model)
    return judged_before(wildcards.model, "check_template", template_check_spec(wildcards), record)


def judged_before_asking(wildcards):
    """Return the quality that was judged before a model is asked."""
    record = ANSWERS_OF_ONE.format(**wildcards)
    return judged_before(wildcards.model, "ask_questions", question_spec(wildcards), record)


def judged_before_comparing(wildcards):
    """Return the quality that was judged before the answers of a model are compared."""
    record = f"results/{wildcards.model}/answers.json"
    return judged_before(wildcards.model, "compare_answers", comparison_spec(wildcards), record)


def marker_to_check(wildcards):
    """Return the marker of the model whose prompts are checked."""
    record = TEMPLATE_CHECK.format(model=wildcards.model)
    marker = smallest_quantization(MARKER)(wildcards)
    return followed_until_done(marker, "check_template", template_check_spec(wildcards), record)


def marker_to_ask(wildcards):
    """Return the marker of the model that is asked."""
    record = ANSWERS_OF_ONE.format(**wildcards)
    return followed_until_done(MARKER.format(**wildcards), "ask_questions", question_spec(wildcards), record)


def questions_file(wildcards):
    """Return the questions that a model asks of another or of itself."""
    questions = CONFIG.models[wildcards.asker].answers.questions
    return brought(questions) if questions else []


def asked_models(name):
    """Return label -> (model, quantization) of all that a model's questions are put to, the base first."""
    answers, quantizations = CONFIG.models[name].answers, quantizations_of(name)
    asked = {}
    if answers.base:
        base, quant = answers.base
        asked["base"] = (base, quant or quantizations_of(base)[0])
    # What the plan chose is judged, even if it is the unquantized type.
    unquantized = answers.unquantized if quantizations[0] != answers.unquantized else None
    labels = {quant: "fine-tune" if quant == unquantized else quant for quant in quantizations}
    ordered = sorted(quantizations, key=lambda quant: -QUANTIZATION_TYPES[quant].bits_per_weight)
    return asked | {labels[quant]: (name, quant) for quant in ordered}


def labelled_answers(wildcards):
    """Return LABEL=FILE of all that a model's questions were put to."""
    return [
        f"{label}={ANSWERS_OF_ONE.format(model=model, quant=quant, asker=wildcards.model)}"
        for label, (model, quant) in asked_models(wildcards.model).items()
    ]


def answers_to_compare(wildcards):
    """Return the files of all that a model's questions were put to."""
    return [answers.partition("=")[2] for answers in labelled_answers(wildcards)]


def judged_quantizations(wildcards):
    """Return the labels of those that must reach the score: the quantizations that the user named."""
    return [label for label in asked_models(wildcards.model) if label not in ("base", "fine-tune")]


# The RAG application's configuration --------------------------------------------------------------------------------
def rag_marker_so_far(name):
    """Return the marker of the model that the application uses; None if it is the plan's choice and there is no plan yet."""
    quantization = CONFIG.models[name].rag.quantization or next(iter(quantizations_so_far(name)), None)
    return quantization and MARKER.format(model=name, quant=quantization)


def rag_spec(wildcards):
    """Return what is written into the file, as far as the configuration says it, and what has undone it since."""
    model, record = CONFIG.models[wildcards.model], RAG_CONFIG.format(**wildcards)
    asked, marker = model.rag.as_spec(), rag_marker_so_far(wildcards.model)
    # Which quantization it is the marker's path among the inputs says; of an automatic model it is known after its plan.
    first = model.rag.quantization or (None if model.is_automatic else model.quantizations[0])
    name = model.registered_names[first] if first else sorted(set(model.registered_names.values()))
    num_ctx = model.parameters.get("num_ctx") if "num_ctx" in model.rag.keys else None
    back = marker and undone(Path(record), Path(marker), asked)
    code = code_digest("write_rag_config")
    return spec(**asked, **PLACE, name=name, num_ctx=num_ctx, undone=back, code=code)


def rag_input(wildcards, file):
    """Return what an update waits for, without being started by it where it would write the same again."""
    return followed_until_done(file, "write_rag_config", rag_spec(wildcards), RAG_CONFIG.format(**wildcards))


def marker_for_rag(wildcards):
    """Return the marker of the model that the application uses. With `ollama.target: auto` each may be of another place."""
    quantization = CONFIG.models[wildcards.model].rag.quantization or quantizations_of(wildcards.model)[0]
    marker = MARKER.format(model=wildcards.model, quant=quantization)
    return marker if CONFIG.target == "auto" else rag_input(wildcards, marker)


def checks_before_rag(wildcards):
    """Return what must have found the registered model fit to be used: the check of its prompts, the verdict on its answers."""
    asked = CONFIG.models[wildcards.model].answers.questions
    checks = [TEMPLATE_CHECK, *["results/{model}/answers.verdict.json"] * bool(asked)]
    return [rag_input(wildcards, check.format(**wildcards)) for check in checks]


def judged_before_rag(wildcards):
    """Return the quality that was judged before an application is told of a model."""
    return judged_before(wildcards.model, "write_rag_config", rag_spec(wildcards), RAG_CONFIG.format(**wildcards))


def plan_of_rag_num_ctx(wildcards):
    """Return the plan where it gives the num_ctx that is written."""
    return plan_of_num_ctx(wildcards) if "num_ctx" in CONFIG.models[wildcards.model].rag.keys else []


# Serving elsewhere ----------------------------------------------------------------------------------------------------
def checkpoint_to_serve(wildcards):
    """Return what says that a bitsandbytes checkpoint is there; that of another is wanted where it is served."""
    return ancient(checkpoint_record(wildcards.model, wildcards.checkpoint))


def serving_spec(wildcards):
    """Return what the files to serve a model with depend on beside its plan and its files."""
    model = CONFIG.models[wildcards.model]
    base, adapters = folders_of(wildcards.model)
    return spec(
        base=base,
        adapter=adapters[0] if adapters else None,
        parameters=model.parameters,
        system=bool(model.system),
        port=model.serving.port,
        keeps_merged=CONFIG.keep_merged,
    )


# Quality ------------------------------------------------------------------------------------------------------------
def domain_text(wildcards):
    """Return what the configuration says of one of a model's texts."""
    model = CONFIG.models[wildcards.model]
    return model.calibration if wildcards.purpose == "calibration" else model.quality.evaluation


def calibration_texts(wildcards):
    """Return the files that a model's importance matrix is computed from."""
    return [brought(file) for file in CONFIG.models[wildcards.model].calibration.files]


def text_contents(wildcards):
    """Return what the files of one of a model's texts hold."""
    return contents_of(domain_text(wildcards).files)


def overlap_contents(wildcards):
    """Return what the files of both of a model's texts hold."""
    model = CONFIG.models[wildcards.model]
    return contents_of([*model.calibration.files, *model.quality.evaluation.files])


def evaluation_texts(wildcards):
    """Return the files that a model's quality is measured on."""
    return [brought(file) for file in CONFIG.models[wildcards.model].quality.evaluation.files]


def text_key(wildcards):
    """Return the key of the configuration that names a text."""
    return f"models.{wildcards.model}.{'imatrix' if wildcards.purpose == 'calibration' else 'quality'}"


def imatrix_for(pattern):
    """Return a function of wildcards: a file of the importance matrix, for the types that it changes."""

    def path(wildcards):
        given = CONFIG.models[wildcards.model].calibration.is_given
        uses = given and QUANTIZATION_TYPES[wildcards.quant].uses_imatrix
        return pattern.format(model=wildcards.model) if uses else []

    return path


def measured_file(kind):
    """Return a function of wildcards: the GGUF that is measured, or its record."""

    def path(wildcards):
        base = base_to_measure(wildcards) if wildcards.measured == "base" else None
        name, of = (base, "unquantized") if base else (wildcards.model, wildcards.measured)
        return f"results/{name}/gguf/{name}.{of}.{kind}"

    return path


def base_to_measure(wildcards):
    """Return the base that a fine-tune is compared with; end with a message where it is not to be measured."""
    if base := CONFIG.models[wildcards.model].measured_base:
        return base
    key = f"models.{wildcards.model}.quality"
    if not CONFIG.models[wildcards.model].quality.is_measured:
        raise WorkflowError(
            f"{key}: nothing is measured of this model. Name a text to measure on in {key}.text or .chat."
        )
    raise WorkflowError(f"{key}.base is false, so its base is not measured. Set it to true to compare with the base.")


def weights_measured(wildcards):
    """Return the GGUF that is measured; its record says when it has changed."""
    if wildcards.measured == "base":
        return unquantized_for(base_to_measure(wildcards), is_measured(wildcards))
    return ancient(measured_file("gguf")(wildcards))


def measured_of_types(pattern):
    """Return a function of wildcards: a pattern with each type of a model that is measured."""

    def paths(wildcards):
        return [
            pattern.format(model=wildcards.model, quant=quant, measured=quant)
            for quant in measured_types(wildcards.model)
        ]

    return paths


def reference_to_measure(wildcards):
    """Return what the reference said, as an input that starts a measurement only if it has something to do anyway.

    It is said anew, and the same, where the log-probabilities are made again for another measurement.
    """
    said = "results/{model}/quality/reference.json".format(model=wildcards.model)
    return followed_until_done(said, "evaluate_quality", measuring_spec(wildcards), QUALITY_OF_ONE.format(**wildcards))


def measuring_spec(wildcards):
    """Return what a measurement depends on beside files that other jobs make: the code, and a program that was found."""
    return spec(code=code_digest("evaluate_quality"), program=program_version("llama-perplexity"))


def checkpoint_measuring_spec(wildcards):
    """Return what the measurement of a bitsandbytes checkpoint depends on beside files that other jobs make."""
    return spec(code=code_digest("evaluate_bitsandbytes"))


def quantization_spec(wildcards):
    """Return what a quantization depends on beside files that other jobs make."""
    uses = CONFIG.models[wildcards.model].calibration.is_given and QUANTIZATION_TYPES[wildcards.quant].uses_imatrix
    return spec(code=code_digest("quantize"), program=program_version("llama-quantize"), imatrix=uses)


def imatrix_spec(wildcards):
    """Return what an importance matrix depends on beside files that other jobs make."""
    return spec(code=code_digest("compute_imatrix"), program=program_version("llama-imatrix"))


def released_logits(wildcards):
    """Return what says that the log-probabilities were there for each measurement."""
    base = ["base"] if CONFIG.models[wildcards.model].measured_base else []
    return expand(
        "results/{model}/quality/{measured}.released",
        model=wildcards.model,
        measured=base + measured_types(wildcards.model),
    )


def overlap_of_texts(wildcards):
    """Return what the text to measure on shares with the text to calibrate on, where there is one."""
    calibrated = CONFIG.models[wildcards.model].calibration.is_given
    return f"results/{wildcards.model}/quality/overlap.json" if calibrated else []


def measured_base(wildcards):
    """Return what was measured of the base, where it is."""
    base = CONFIG.models[wildcards.model].measured_base
    return QUALITY_OF_ONE.format(model=wildcards.model, measured="base") if base else []


def measured_speeds(wildcards):
    """Return the speeds of a model's types, where they are measured."""
    speed = CONFIG.models[wildcards.model].quality.speed
    return measured_of_types(SPEED_OF_ONE)(wildcards) if speed else []


def verdict_before_registration(wildcards):
    """Return the verdict that a registration waits for, if there are limits.

    Judging again, because another quantization was added, registers nothing again: hence ancient, unless the model belongs
    elsewhere now.
    """
    if not CONFIG.models[wildcards.model].quality.guards_registration:
        return []
    verdict = VERDICT.format(**wildcards)
    try:
        marker = json.loads(Path(MARKER.format(**wildcards)).read_text(encoding="utf-8"))
        here = marker["target"] != "store" or Path(marker["store"]).resolve() == Path(PLACE["store"]).resolve()
        same = here and CONFIG.target in ("auto", marker["target"])
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    return ancient(verdict) if same else verdict


# The report ---------------------------------------------------------------------------------------------------------
# Snakemake sorts the categories by name.
CATEGORIES = {"plan": "2 Plan", "quality": "4 Quality", "answers": "5 Answers"}


def gguf_records(wildcards):
    """Return the records of the GGUFs that a model is registered with, that which its tokenizer is read of first."""
    quantized = [of_weights(WEIGHTS_RECORD, wildcards.model, quant) for quant in quantizations_of(wildcards.model)]
    return [unquantized_record(wildcards), *quantized]


def merge_report_shown(wildcards):
    """Return the report of the merge that a model's weights come from; nothing where Ollama had them already."""
    owner = ADAPTER_ONLY.get(wildcards.model, wildcards.model)
    return [] if wildcards.model in FROM_OLLAMA else f"results/{owner}/merge_report.json"


def markers_of_model(wildcards):
    """Return the markers of a model."""
    return expand(MARKER, model=wildcards.model, quant=quantizations_of(wildcards.model))


def quality_if_measured(wildcards):
    """Return the quality of a model, nothing where it is not measured."""
    return QUALITY_SUMMARY.format(**wildcards) if wildcards.model in MEASURED else []


def answers_if_asked(wildcards):
    """Return the scores of a model's answers, nothing where no questions were given."""
    asked = CONFIG.models[wildcards.model].answers.questions
    return f"results/{wildcards.model}/answers.json" if asked else []


def imatrix_if_computed(wildcards):
    """Return the record of a model's importance matrix, nothing where no quantization is made with one."""
    calibrated = CONFIG.models[wildcards.model].calibration.is_given
    uses = [QUANTIZATION_TYPES[quant].uses_imatrix for quant in quantizations_of(wildcards.model)]
    return f"results/{wildcards.model}/gguf/{wildcards.model}.imatrix.json" if calibrated and any(uses) else []


def pages_of_answers(wildcards):
    """Return the pages that show a model's answers."""
    return ancient(expand("results/{model}/{page}.html", model=wildcards.model, page=["answers", "overview"]))


def pictures_of_overview(wildcards):
    """Return the pictures of a model's overview."""
    drawn = ["plan"] + ["merge_report"] * (wildcards.model not in ADAPTER_ONLY)
    drawn += ["quality"] * (wildcards.model in MEASURED)
    return expand("results/{model}/{name}.svg", model=wildcards.model, name=drawn)


def picture_of_document(wildcards):
    """Return the picture that stands in a document."""
    return [] if wildcards.document == "answers" else f"results/{wildcards.model}/{wildcards.document}.svg"


def category_of_document(wildcards):
    """Return the heading of the report under which a document is shown."""
    return CATEGORIES[wildcards.document]


# Params: one sorted JSON a rule, since Snakemake compares params as a set of values without names --------------------
def spec(**values):
    """Return what a rule's result depends on beside its inputs, as text that is the same for the same values."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


class Later:
    """A param that starts no job, found out when a command or message is written, and not each time the graph is drawn."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text()


@cache
def seen(name):
    """Return what the earlier merges of a model have read."""
    if name in ADAPTER_ONLY:
        own = [*of_each_shard(ADAPTER_ONLY[name], MERGE_RECORD), ADAPTER_RECORD.format(model=name)]
    else:
        own = of_each_shard(name, MERGE_RECORD)
    return seen_files(map(Path, own))


def identities(name, files):
    """Return path -> identity of the weight files that the user brought; the demo's rules look after their own."""
    known = known_identities(name)
    return {file: known(file) or identity_of(Path(file), seen(name)) for file in files if not is_made_here(file)}


def known_digests(wildcards, input):
    """Return path -> sha256 of weight files that an earlier merge has read and that seem untouched, or that are pinned.

    It starts no job: a file that was replaced with size and time kept is found out when it is read again.
    """
    before, pinned = dict(seen(wildcards.model)), known_identities(wildcards.model)
    files = [str(file) for file in shard_weights(wildcards)]

    def in_words():
        return spec(
            **{file: digest for file in files if (digest := known_digest(file, pinned(file), before.get(file)))}
        )

    return Later(in_words)


def known_digest(file, identity, entry):
    """Return the sha256 that a weight file must have by its identity on the hub, or by what was read of it; None if unknown."""
    if identity is not None:
        return identity.removeprefix("sha256:") if identity.startswith("sha256:") else None
    if entry is None or is_made_here(file) or not os.path.exists(file):
        return None
    status = os.stat(file)
    untouched = (status.st_size, status.st_mtime_ns) == (entry["size"], entry["mtime_ns"])
    return entry["sha256"] if untouched else None


def known_identities(name):
    """Return a function: the identity of a weight file that is pinned on the hub, or lies in a bucket; None of one that is here."""
    pinned = {file: digest for source in pinned_of(name).values() for file, digest in source.digests().items()}
    return lambda file: pinned.get(file) or (BUCKET.identity(file) if BUCKET else None)


# Sources on the hub -------------------------------------------------------------------------------------------------
def pin_spec(wildcards):
    """Return what of a model is on the hub, as the configuration names it."""
    base, *adapters = [path if path in REFERENCES else None for _, path in named_sources(wildcards.model)]
    return spec(format=FORMAT, base=base, adapters=adapters)


def pins_so_far(wildcards, input):
    """Return what other models were pinned to, so that one name means one commit; it starts no job."""
    files = [f"results/{name}/sources.json" for name in dict.fromkeys(PIN_OWNER.values()) if name != wildcards.model]
    return [file for file in files if os.path.exists(file)]


def asks_for_renewal(wildcards, input):
    """Return the flag that looks where a branch is now: only if the job itself is asked for."""
    asked = {"pin_sources", f"results/{wildcards.model}/sources.json"}
    return ["--renew"] if asked & set(map(str, workflow.dag_settings.forcerun)) else []


def read_pins():
    """Return all sources that are pinned now, by the folder that they are fetched to, each with the models that have it."""
    return pins_after(len(workflow.checkpoints.created_output))


@cache
def pins_after(count):
    """Read them once, and anew when one more checkpoint of this run is done."""
    found = {}
    for name, owner in PIN_OWNER.items():
        file = Path(f"results/{owner}/sources.json")
        sources = or_one_message(pinned_sources, file) if file.exists() else {}
        for path in dict.fromkeys(path for _, path in named_sources(name) if path in sources):
            found.setdefault(sources[path].folder, (sources[path], []))[1].append(name)
    return found


def pinned_at(wildcards):
    """Return the source that is fetched to a folder."""
    return pinned_with_users(wildcards)[0]


def pinned_with_users(wildcards):
    """Return the source that is fetched to a folder, and the models that have it."""
    folder = f"resources/hub/{wildcards.repo}/{wildcards.tree}"
    pinned = read_pins().get(folder)
    if pinned is None:
        raise WorkflowError(f"{folder} is not what a model of this configuration is pinned to. Run `snakemake all`.")
    return pinned


def weights_to_fetch(wildcards):
    return spec(**pinned_at(wildcards).file(wildcards.weights_file))


def small_file_to_fetch(wildcards):
    return spec(**pinned_at(wildcards).file(wildcards.small_file))


def headers_to_fetch(wildcards):
    return json.dumps(pinned_at(wildcards).weights)


def checks_before_download(wildcards):
    """Return the checks and merge plans of the models that are built from what is fetched to a folder.

    ancient(): once they have passed, a new one has nothing to hold back.
    """
    _, users = pinned_with_users(wildcards)
    return [ancient(f"results/{name}/{file}.json") for name in users for file in ("inputs", "merge_plan")]


def commit_to_fetch(wildcards, input):
    """Return the commit that is fetched from; another one with the same files starts no job."""
    return pinned_at(wildcards).commit


def is_planned_by_shape(name):
    """Return whether only a plan is wanted of a base on the hub: then its shape does, without adapter and often without network.

    A job of such a plan that runs in a process of its own sees no targets, but that nothing is pinned.
    """
    if name not in BASE_ON_HUB or os.path.exists(f"results/{PIN_OWNER[name]}/sources.json"):
        return False
    targets = workflow.dag_settings.targets
    plans = re.compile(r"plan|results/[^/]+/(plan\.(json|md|svg)|times\.json)")
    return not workflow.is_main_process or (bool(targets) and all(plans.fullmatch(str(target)) for target in targets))


# The plan ---------------------------------------------------------------------------------------------------------
def shape_file(wildcards):
    """Return the shape of a model that is not here: the one that comes with ollamake, else the one from the hub."""
    shipped = shipped_shape(wildcards.shape, Path(SHIPPED_SHAPES))
    return everywhere(str(shipped)) if shipped else f"resources/shapes/{wildcards.shape}.json"


def ghost_of_model(wildcards):
    """Return what is known of a model's size: of its merge, or of the shape of a base that is not here."""
    if is_planned_by_shape(wildcards.model):
        return f"resources/ghosts/{CONFIG.models[wildcards.model].base}.json"
    return f"results/{wildcards.model}/ghost.json"


def ghosts_of_alternatives(wildcards):
    """Return what is known of the other bases to plan."""
    if CONFIG.models[wildcards.model].is_derived:
        return []
    return [f"resources/ghosts/{shape}.json" for shape in CONFIG.alternatives]


def plan_of_num_ctx(wildcards):
    """Return the plan where it gives num_ctx."""
    return PLAN.format(model=wildcards.model) if CONFIG.models[wildcards.model].plans_num_ctx else []


def quantizations_named():
    """Return all quantizations that the user named."""
    return sorted({quant for model in CONFIG.models.values() for quant in model.quantizations})


def plan_threads(wildcards):
    """Return so many threads that nothing runs beside a plan; of a base on the hub one, or it would wait for all downloads."""
    return 1 if wildcards.model in BASE_ON_HUB else ALL_CORES


def server_elsewhere():
    """Return the address of the Ollama server if it is another machine's."""
    if CONFIG.target == "store" or not PLACE["host"]:
        return None
    address = OllamaServer(PLACE["host"]).address
    return None if is_here(urlsplit(address).hostname or "") else address


def memory_spec(wildcards):
    gpus, ram_gib = CONFIG.hardware["gpus"], CONFIG.hardware["ram_gib"]
    hardware = {"gpus": gpus, "ram_gib": ram_gib}
    by_shape = is_planned_by_shape(wildcards.model)
    left_out = {"adapters": True} if by_shape and CONFIG.models[wildcards.model].adapters else {}
    # Where hardware is given it does not matter where the server is, nor which of this machine's it is.
    host = server_elsewhere() if gpus is None else None
    imatrix = CONFIG.models[wildcards.model].calibration.is_given
    served = {"serves_adapter": True} if wildcards.model in ADAPTER_ONLY else {}
    return spec(asked=CONFIG.asked, hardware=hardware, host=host, left_out=left_out, imatrix=imatrix, **served)


def texts_spec(model):
    """Return the files to calibrate and to measure on."""
    texts = {"calibration": model.calibration, "evaluation": model.quality.evaluation}
    return {purpose: {"text": text.text, "chat": text.chat} for purpose, text in texts.items() if text.is_given}


def programs_to_build():
    """Return the programs of llama.cpp that are needed and were not found on this machine."""
    needed = [program for program in PROGRAMS if program != "llama-fit-params" or builds_fit_params()]
    return [program for program in needed if CONFIG.llama_cpp is None and found_program(program) is None]


def check_spec(wildcards):
    model = CONFIG.models[wildcards.model]
    weights = [file for weights, files in sources_of(wildcards.model) for file in weights]
    base, adapters = folders_of(wildcards.model)
    folders = [base, *adapters]
    served = {"serves_adapter": True} if wildcards.model in ADAPTER_ONLY else {}
    return spec(
        **served,
        base=base,
        adapters=weighted_adapters(wildcards.model),
        made_here=[folder for folder in folders if folder in MADE_HERE],
        weights=identities(wildcards.model, weights),
        dtype=CONFIG.dtype,
        quantizations=[AUTO] * model.is_automatic + list(model.quantizations),
        target=PLACE["target"],
        host=PLACE["host"],
        store=PLACE["store"],
        questions=model.answers.questions,
        texts=texts_spec(model),
        compared=[*model.quality.compare, *served_types(wildcards.model)],
        measured_unquantized=wildcards.model in MEASURED_BASES,
        compiler_needed=bool(programs_to_build()),
        tools=[[program, *program_if_found(program)] for program in PROGRAMS if program_if_found(program)],
        keep_merged=CONFIG.keep_merged,
        keep_unquantized=CONFIG.keep_unquantized,
        disk_gib=disk_budget(),
        **({"rag": {"file": model.rag.file, "keys": keys_of_rag(model.rag)}} if model.rag else {}),
        **({"served_beside": True} if model.serving and "adapter" in model.serving.checkpoints else {}),
        **({"checkpoints": list(model.bitsandbytes.types)} if model.bitsandbytes.types else {}),
        **({"evaluated_context": model.quality.evaluation.context} if model.bitsandbytes.evaluate else {}),
        **({"hub": on_hub_of_check(wildcards.model)} if wildcards.model in ON_HUB else {}),
        shapes=SHIPPED_SHAPES,
    )


def on_hub_of_check(name):
    """Return what of a model is on the hub: which commit its folders are, and the weight files that its build needs."""
    sources = pinned_of(name)
    built = name not in ADAPTER_ONLY or name in FROM_OLLAMA
    needed = [one for path, one in sources.items() if built or path != CONFIG.models[name].base]
    return {
        "commits": {one.folder: f"{one.repo} ({one.revision}, commit {one.commit[:12]})" for one in sources.values()},
        "weights": {f"{one.folder}/{file}": one.file(file) for one in needed for file in one.weights},
        "keeps_downloads": CONFIG.keep_downloads,
    }


def keys_of_rag(rag):
    """Return where what is written goes; in the store there is no address to write."""
    return {name: key for name, key in rag.keys.items() if (name, CONFIG.target) != ("ollama_host", "store")}


def check_now(wildcards, input):
    """Return what may change without the inputs having to be checked again: it starts no job."""
    model = CONFIG.models[wildcards.model]
    builds = [f"{LLAMA_CPP}/bin/{program}" for program in programs_to_build()]
    # Those before it: what they keep is there when it is built. Later ones wait until it fits beside.
    others = [name for name in TURNS[: TURNS.index(wildcards.model)] if name not in ADAPTER_ONLY]

    def now():
        return spec(
            chosen=list(quantizations_so_far(wildcards.model)) if model.is_automatic else [],
            builds_llama_cpp=not all(map(os.path.exists, builds)),
            jobs_run_here=workflow.local_exec,
            others=[built_beside(name) for name in others],
        )

    return Later(now)


@cache
def built_beside(name):
    """Return what the disk that a model takes is estimated from when another one is checked."""
    model = CONFIG.models[name]
    return {
        "name": name,
        "base_bytes": base_bytes_so_far(name),
        "quantizations": list(quantizations_so_far(name)) or [AUTO] * model.is_automatic + list(model.quantizations),
        "compared": [*model.quality.compare, *served_types(name)],
        "measured_unquantized": name in MEASURED_BASES,
        "checkpoints": list(model.bitsandbytes.types),
    }


def base_bytes_so_far(name):
    """Return the bytes of the weights of a model's base, as far as they are known."""
    if name not in BASE_ON_HUB:
        return sum(os.path.getsize(file) for file in sources_of(name)[0][0] if os.path.exists(file))
    pins = Path(f"results/{PIN_OWNER[name]}/sources.json")
    sources = or_one_message(pinned_sources, pins) if pins.exists() else {}
    source = sources.get(CONFIG.models[name].base)
    return source.weights_bytes if source else 0


def limits_spec(wildcards):
    quality = CONFIG.models[wildcards.model].quality
    registered = list(quantizations_of(wildcards.model))
    return spec(limits=quality.limits, on_fail=quality.on_fail, registered=registered)


def plan_spec(wildcards):
    weights = [file for weights, files in sources_of(wildcards.model) for file in weights]
    known = known_identities(wildcards.model)
    return spec(
        base=folders_of(wildcards.model)[0],
        adapters=weighted_adapters(wildcards.model),
        dtype=CONFIG.dtype,
        headers={file: known(file) or header_digest(Path(file)) for file in weights if not is_made_here(file)},
    )


def shard_spec(wildcards):
    return spec(**identities(wildcards.model, [str(file) for file in shard_weights(wildcards)]))


def bitsandbytes_weights_settings(wildcards):
    return spec(**weights_settings(CONFIG.models[wildcards.model].bitsandbytes, wildcards.precision))


def bitsandbytes_settings(wildcards):
    return spec(**all_settings(CONFIG.models[wildcards.model].bitsandbytes, wildcards.precision))


def bitsandbytes_shard_spec(wildcards):
    """Return what a quantized shard depends on beside files that other jobs make."""
    return spec(
        settings=weights_settings(CONFIG.models[wildcards.model].bitsandbytes, wildcards.precision),
        weights=identities(wildcards.model, [str(file) for file in shard_weights(wildcards)]),
        code=[code_digest("merge_shard"), code_digest("quantize_bitsandbytes")],
    )


def adapter_spec(wildcards):
    return spec(**identities(wildcards.model, [str(file) for file in adapter_weights(wildcards)]))


@cache
def conversion_spec_of(name):
    """Return what the unquantized GGUF of a model depends on beside files that other jobs make."""
    weights = [file for weights, files in sources_of(name) for file in weights]
    converter = find_converter(CONFIG.llama_cpp)
    return spec(
        weights=identities(name, weights),
        code=[code_digest("merge_shard"), code_digest("convert_to_gguf")],
        converter=sha256_of(converter) if converter else None,
    )


def conversion_spec(wildcards):
    return conversion_spec_of(wildcards.model)


def source_spec(wildcards):
    base, adapters = folders_of(wildcards.model)
    return spec(base=base, adapters=adapters)


def template_spec(wildcards):
    return json.dumps(CONFIG.models[wildcards.model].template, ensure_ascii=False)


def modelfile_spec(wildcards):
    model = CONFIG.models[wildcards.model]
    name = model.registered_names[wildcards.quant]
    quant = {"quantization": wildcards.quant} if model.plans_num_ctx else {}
    return spec(name=name, system=model.system, license=model.license, parameters=model.parameters, **quant)


def place_spec(wildcards):
    return spec(**PLACE)


def template_check_spec(wildcards):
    """Return what a check of prompts depends on beside what is built: place, what of the request matters, and the code."""
    model = CONFIG.models[wildcards.model]
    asked = {name: model.parameters.get(name) for name in ("stop", "num_ctx")} | {"system": bool(model.system)}
    code = code_digest("check_template")
    return spec(**PLACE, **asked, differs=model.template_differs, code=code)


def question_spec(wildcards):
    """Return what answers depend on beside the model: place, questions, and how long an answer may be."""
    answers = CONFIG.models[wildcards.asker].answers
    questions = Path(answers.questions)
    if BUCKET:
        BUCKET.fetch([answers.questions])
    digest = sha256_of(questions) if questions.is_file() else None
    return spec(**PLACE, questions=digest, max_tokens=answers.max_tokens, code=code_digest("ask_questions"))


def comparison_spec(wildcards):
    """Return what the comparison of a model's answers depends on beside the answers."""
    answers = CONFIG.models[wildcards.model].answers
    limit = {"min_score": answers.min_score, "limit_key": answers.limit_key, "on_fail": answers.on_fail}
    return spec(**limit, judged=judged_quantizations(wildcards), code=code_digest("compare_answers"))


def program_version(program):
    """Return what changes when a program that was found here is replaced; a built one has its record."""
    found = found_program(program)
    return program_identity(found) if found else "built here"


def ghost_programs():
    """Return what changes when one of the programs that were found here and size a model is replaced."""
    found = {program: program_if_found(program) for program in ("llama-quantize", "llama-fit-params")}
    return spec(**{program: program_identity(Path(*path)) if path else None for program, path in found.items()})


# Threads and resources: MB, from the merge plan -----------------------------------------------------------
def merge_threads(wildcards):
    """Return 1 where reading, hashing and writing take the time: shards side by side use the cores better than one alone."""
    return THREADS if needs_peft(wildcards.model) else 1


def threads_alone(wildcards):
    """Return so many threads that nothing else runs beside a job; elsewhere than here, those that it uses."""
    return ALL_CORES if workflow.local_exec else THREADS


def with_executor(mem_mb):
    """Return what is asked for a job: elsewhere than here, with what Snakemake takes there."""
    return mem_mb if workflow.local_exec else mem_mb + SUBMITTED_MB


def build_mem_mb(wildcards, threads):
    """Return what compiling takes: up to 460 MiB for each compiler, measured, and the linker."""
    return with_executor(1000 + 500 * threads)


@cache
def plan_of_merge(file, changed):
    """Return a merge plan; ``changed`` is the file's time, with which it is read anew."""
    return or_one_message(read_record, Path(file))


def merge_plan_of(input):
    """Return the merge plan among a job's inputs."""
    file = str(input.plan)
    return plan_of_merge(file, os.stat(file).st_mtime_ns)


def merge_needs(wildcards, input):
    """Return what merging a shard takes."""
    return job_needs.merge_shard(merge_plan_of(input), os.path.basename(MERGED_SHARD.format(**wildcards)))


def quantize_needs(wildcards, input):
    """Return what quantizing takes."""
    plan = merge_plan_of(input)
    size = job_needs.quantized_bytes(plan, wildcards.quant)
    return job_needs.quantize(job_needs.unquantized_type(plan), wildcards.quant, job_needs.largest_tensor(plan), size)


def merge_mem_mb(wildcards, input):
    return with_executor(merge_needs(wildcards, input).mem_mb)


def merge_disk_mb(wildcards, input):
    return merge_needs(wildcards, input).disk_mb


def fetch_disk_mb(wildcards):
    """Return what fetching a shard adds to the disk, where the cache does not have it."""
    return -(-pinned_at(wildcards).content[wildcards.weights_file]["size"] // 1_000_000)


def bitsandbytes_needs(wildcards, input):
    """Return what quantizing a merged shard with bitsandbytes takes."""
    shard = os.path.basename(MERGED_SHARD.format(**wildcards))
    return quantize_bitsandbytes(merge_plan_of(input), shard, wildcards.precision)


def bitsandbytes_mem_mb(wildcards, input):
    return with_executor(bitsandbytes_needs(wildcards, input).mem_mb)


def bitsandbytes_disk_mb(wildcards, input):
    return bitsandbytes_needs(wildcards, input).disk_mb


def checkpoint_quality_mem_mb(wildcards, input):
    context = CONFIG.models[wildcards.model].quality.evaluation.context
    return with_executor(evaluate_bitsandbytes(merge_plan_of(input), wildcards.precision, context).mem_mb)


def convert_mem_mb(wildcards, input):
    return with_executor(job_needs.convert(merge_plan_of(input)).mem_mb)


def convert_disk_mb(wildcards, input):
    return job_needs.convert(merge_plan_of(input)).disk_mb


def adapter_mem_mb(wildcards, input):
    return with_executor(job_needs.convert_adapter(merge_plan_of(input)).mem_mb)


def quantize_mem_mb(wildcards, input):
    return with_executor(quantize_needs(wildcards, input).mem_mb)


def quantize_disk_mb(wildcards, input):
    return quantize_needs(wildcards, input).disk_mb


def quantize_streams(wildcards):
    """Return 1 for types that are written as fast as memory and disk allow, 0 where the arithmetic takes the time."""
    return int(wildcards.quant in (*UNQUANTIZED, "Q8_0"))


def imatrix_mem_mb(wildcards, input):
    return with_executor(job_needs.compute_imatrix(merge_plan_of(input)).mem_mb)


def reference_mem_mb(wildcards, input):
    return with_executor(job_needs.evaluate(merge_plan_of(input), None).mem_mb)


def quality_mem_mb(wildcards, input):
    kind = None if wildcards.measured == "base" else wildcards.measured
    return with_executor(job_needs.evaluate(merge_plan_of(input), kind).mem_mb)


def speed_mem_mb(wildcards, input):
    return with_executor(job_needs.measure_speed(merge_plan_of(input), wildcards.quant).mem_mb)


# Order: one model after the other --------------------------------------------------------------------------------------
def by_turn(wildcards):
    """Return the priority of a job that needs weights: a model is finished, and its intermediate files gone, before the next."""
    return -PLACES[wildcards.model]


PLACES = {name: place for place, name in enumerate(TURNS)}
WRITE_WEIGHTS = ("fetch_shard", "merge_shard", "convert_to_gguf", "quantize", "quantize_bitsandbytes")


def take_of(name):
    """Return what a model takes of the disk, by what is there now."""
    model = CONFIG.models[name]
    quantizations = [*quantizations_so_far(name)] or [CANDIDATES[0]] * model.is_automatic
    here = CONFIG.target != "store" and server_elsewhere() is None
    peak = disk_peak(
        or_one_message(read_record, Path(f"results/{name}/merge_plan.json")),
        name,
        Path("results", name),
        quantizations,
        Registration("server" if here else "shared", "", ""),
        keep_merged=CONFIG.keep_merged,
        keep_unquantized=CONFIG.keep_unquantized,
        compared=[kind for kind in (*model.quality.compare, *served_types(name)) if kind not in (AUTO, *quantizations)],
        measured_unquantized=name in MEASURED_BASES,
        checkpoints=model.bitsandbytes.types,
    )
    if name in ON_HUB:
        peak = with_downloads(peak, bytes_to_fetch(on_hub_of_check(name)["weights"]), keeps=CONFIG.keep_downloads)
    return Take(peak.needed, peak.stays)


def disk_allowed():
    """Return the bytes that this run may add."""
    free, budget = free_bytes(Path("results")) - MARGIN, disk_budget()
    return max(0, free if budget is None else min(free, int(budget * GIB)))


def disk_budget():
    """Return the GiB that a build may add to the disk, by the configuration or by `--resources disk_mb`; None: what is free."""
    given = workflow.global_resources.get("disk_mb")  # so named with --resources disk=100GB, too
    budgets = [CONFIG.hardware["disk_gib"], given and given.value and given.value * 1_000_000 / GIB]
    return min((budget for budget in budgets if budget), default=None)


DISK_TURNS = DiskTurns(disk_allowed, take_of)


def in_turns(select_jobs):
    """Return a scheduler's choice of jobs, made among those that do not fill the disk out of turn.

    Snakemake's resources bound what running jobs declare. What they leave on the disk for later jobs it does not count.
    """

    def select(scheduler, selectable_jobs, remaining_jobs, *arguments):
        running = workflow.scheduler.running
        writers = [job for job in selectable_jobs if models_of(job, WRITE_WEIGHTS)]
        waiting = sorted({name for job in writers for name in models_of(job, WRITE_WEIGHTS)}, key=PLACES.get)
        unfinished = {name for job in (*remaining_jobs, *running) for name in models_of(job)}
        others = len(writers) < len(selectable_jobs)
        if any(models_of(job, ("check_inputs", "plan_merge")) for job in (*selectable_jobs, *running)):
            begun = set()  # Who is first is known when all are planned, which takes seconds.
        else:
            begun = DISK_TURNS.may_write(waiting, unfinished, anything_runs=bool(running) or others)
            if waiting and not running and not others and begun.isdisjoint(waiting):
                begun = DISK_TURNS.begin_anyway(waiting[0])
        jobs = [job for job in selectable_jobs if begun.issuperset(models_of(job, WRITE_WEIGHTS))]
        return select_jobs(scheduler, jobs, remaining_jobs, *arguments) if jobs else []

    select.in_turns = True
    return select


def models_of(job, rule_names=None):
    """Return the models that a job, or the jobs of a group, are for: of all rules but those of the report, or of some."""
    jobs = getattr(job, "jobs", [job])
    named = [one for one in jobs if one.rule.name in rule_names] if rule_names else jobs
    shown = ("write_overview", "write_page")
    return {name for one in named if one.rule.name not in shown and (name := model_of(one)) is not None}


def model_of(job):
    """Return the model that a job is for; of a shard from the hub the first that needs it."""
    name = first_user(job.wildcards) if job.rule.name == "fetch_shard" else getattr(job.wildcards, "model", None)
    return name if name in PLACES else None


def first_user(wildcards):
    """Return the first model that is built from what is fetched to a folder."""
    _, users = pinned_with_users(wildcards)
    return min(users, key=PLACES.__getitem__)


def fetched_by_turn(wildcards):
    """Return the priority of a download: that of the first model that needs it."""
    return -PLACES[first_user(wildcards)]


def keep_turns():
    """Have whichever scheduler Snakemake uses choose among the jobs whose turn it is."""
    for plugin in SchedulerPluginRegistry().plugins.values():
        if not hasattr(plugin.scheduler.select_jobs, "in_turns"):
            plugin.scheduler.select_jobs = in_turns(plugin.scheduler.select_jobs)


if len(TURNS) > 1:
    keep_turns()


# Times: in the messages of long jobs, by what earlier ones took on this machine. They never start a job. ----------------
@cache
def earlier_jobs():
    """Return what the jobs of former runs took."""
    return job_times.throughput(Path("benchmarks"), Path("results"))


def in_time(rule_name, quantity, kind):
    """Return how long a job may take, as the end of a message; nothing if it is not known."""
    seconds = job_times.estimate(earlier_jobs(), rule_name, quantity, kind).seconds
    return "" if seconds is None else f", {job_times.in_words(seconds)}"


def time_of(rule_name, input, quantity_and_kind):
    """Return how long a job may take, of what is known when its plan is there: (quantity, kind) by the plan."""

    def in_words():
        return in_time(rule_name, *quantity_and_kind(merge_plan_of(input))) if os.path.exists(str(input.plan)) else ""

    return Later(in_words)


def merge_time(wildcards, input):
    shard = os.path.basename(MERGED_SHARD.format(**wildcards))
    kind = "peft" if needs_peft(wildcards.model) else "plain"
    return time_of("merge_shard", input, lambda plan: (job_needs.merge_shard(plan, shard).disk_mb * 1_000_000, kind))


def convert_time(wildcards, input):
    def quantity_and_kind(plan):
        return job_needs.unquantized_bytes(plan), job_needs.unquantized_type(plan)

    return time_of("convert_to_gguf", input, quantity_and_kind)


def quantize_time(wildcards, input):
    return time_of("quantize", input, lambda plan: (job_needs.elements(plan), wildcards.quant))


def store_provenance():
    """Store in the bucket what Snakemake knows of this run, so that a run in another working directory knows it, too."""
    if BUCKET:
        or_one_message(BUCKET.store_provenance)


# The last word --------------------------------------------------------------------------------------------------
def say_how_to_chat():
    """Print the one command that chats with each model that has been registered, and what its build warned of."""
    chat = os.path.relpath(os.path.join(workflow.basedir, "scripts/chat.py"))
    for name, model in CONFIG.models.items():
        for kind, file in (
            ("inputs", f"results/{name}/inputs.json"),
            *[("merge", f"results/{name}/merge_report.json")] * (name not in ADAPTER_ONLY),
            ("template", TEMPLATE_CHECK.format(model=name)),
            *[(f"{one} checkpoint", f"results/{name}/bitsandbytes/{one}.json") for one in model.bitsandbytes.types],
            *[("answers", f"results/{name}/answers.verdict.json")] * bool(model.answers.questions),
            *[
                ("serving", SERVING_RECORD.format(model=name, checkpoint=checkpoint))
                for checkpoint in (model.serving.checkpoints if model.serving else ())
            ],
        ):
            for warning in (
                json.loads(Path(file).read_text(encoding="utf-8")).get("warnings", []) if os.path.exists(file) else []
            ):
                print(f"\n{name}, warning of its {kind}: {printable(warning)}", file=sys.stderr)
        if os.path.exists(PLAN.format(model=name)) and not model.is_derived:
            plan = json.loads(Path(PLAN.format(model=name)).read_text(encoding="utf-8"))
            for warning in chosen_warnings(plan, quantizations_so_far(name)):
                print(f"\n{name}, warning of its plan: {printable(warning)}", file=sys.stderr)
        if name in MEASURED and os.path.exists(QUALITY_SUMMARY.format(model=name)):
            quality = json.loads(Path(QUALITY_SUMMARY.format(model=name)).read_text(encoding="utf-8"))
            for sentence in quality["sentences"]:
                print(f"\n{name}: {printable(sentence)}", file=sys.stderr)
        markers = [
            MARKER.format(model=name, quant=quant) for quant in quantizations_so_far(name) if not model.is_derived
        ]
        commands = [
            chat_command(json.loads(Path(marker).read_text(encoding="utf-8")), marker, chat)
            for marker in markers
            if os.path.exists(marker)
        ]
        if commands:
            print(f"\n{name} is ready. Chat with it:\n\n    {commands[0]}\n", file=sys.stderr)


def say_what_failed():
    """Repeat, as the last thing, what the jobs of this run that failed have said: Snakemake prints much after it."""
    if STOPPED_BY:
        print(
            f"\nStopped by {STOPPED_BY[0]}. What is finished is kept: run the same command again to go on.\n",
            file=sys.stderr,
        )
        return
    for log_file in sorted(Path("logs").rglob("*.log")):
        if log_file.stat().st_mtime < STARTED:
            continue
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        begin = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
        if begin is not None:
            said = "\n    ".join(lines[begin:])
            print(f"\n{log_file.parts[1]} failed ({log_file}):\n\n    {said}\n", file=sys.stderr)


# Snakemake asks what parameters a function has each time that it calls it: for every job, tens of thousands of times.
for function in [value for value in globals().values() if inspect.isfunction(value)]:
    if function.__code__.co_filename == say_what_failed.__code__.co_filename:
        function.__signature__ = inspect.signature(function)
