"""Snakemake, with its scheduler replaced: every job is finished without being run, its outputs written in a moment.

    python tests/bench/finish_jobs.py --snakefile Snakefile --directory FOLDER --cores 1 --no-hooks all

What decides whether a job is done is as a real build leaves it: times, Snakemake's own metadata with code, params and
checksums, the plan and the records of the merge in their full size, markers and the store that they speak of. Weights are
a few bytes. For graph.py, which measures what Snakemake takes to find that nothing is to be done.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import snakemake.cli
from snakemake.scheduling.job_scheduler import JobScheduler

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import plan_merge
from ollamake.ollama_store import OllamaStore

BENCHMARK = (
    "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    "6.4391\t0:00:06\t612.44\t4101.30\t580.02\t583.71\t0.00\t1.20\t88.10\t5.91\n"
)


def finish_all(scheduler: JobScheduler) -> bool:
    """Take the place of JobScheduler.schedule: finish all jobs in an order that their dependencies allow."""
    workflow = scheduler.workflow
    for level in workflow.dag.toposorted(set(workflow.dag.needrun_jobs())):
        for job in level:
            write_outputs(job)
            workflow.async_run(workflow.persistence.finished(job))
    return True


def write_outputs(job: Any) -> None:
    files = [Path(str(file)) for file in job.output]
    for file in [*files, *filter(None, [job.benchmark and Path(str(job.benchmark))])]:
        file.parent.mkdir(parents=True, exist_ok=True)
    if job.benchmark:
        Path(str(job.benchmark)).write_text(BENCHMARK, encoding="utf-8")
    # Rules of the same names in floor.smk have no params: their outputs are looked at by nobody.
    rule_name = job.rule.name if "spec" in job.params.keys() else None  # noqa: SIM118 (a list with names)
    if rule_name == "plan_merge":
        plan_merge.main(["--spec", job.params.spec, "--output", str(files[0])])
    elif rule_name == "merge_shard":
        files[0].write_text("merged\n", encoding="utf-8")
        write(files[1], merge_record(job))
    elif rule_name == "quantize":
        files[0].write_text(f"{files[0]}\n", encoding="utf-8")
        write(files[1], {**digest_and_size(files[0]), "spec": job.params.spec})
    elif rule_name == "register":
        write(files[0], registered(job))
    else:
        record = {"spec": job.params.spec} if rule_name else {}
        for file in files:
            write(file, record)


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def digest_and_size(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def merge_record(job: Any) -> dict[str, Any]:
    """Return a record as merge_shard writes it: what was read, and figures of each tensor that has an update."""
    planned = json.loads(Path(str(job.input.plan)).read_text(encoding="utf-8"))
    name = Path(str(job.output.shard)).name
    identities = json.loads(job.params.spec)
    entries = []
    for file in map(Path, map(str, job.input.weights)):
        status = {"path": str(file), "identity": identities[str(file)], "mtime_ns": file.stat().st_mtime_ns}
        entries.append({**status, **digest_and_size(file)})
    figures = {
        "delta_norm": 4.304,
        "kind": "low_rank",
        "largest_delta": 0.169,
        "relative_norm": 0.724,
        "survival": 0.999,
    }
    (tensors,) = (shard["tensors"] for shard in planned["shards"] if shard["file"] == name)
    return {
        "base": entries[0],
        "adapters": entries[1:],
        "others": [],
        "output": {"file": name, **digest_and_size(Path(str(job.output.shard)))},
        "tensors": {tensor["name"]: figures for tensor in tensors if tensor["edits"]},
    }


def registered(job: Any) -> dict[str, Any]:
    """Put the manifest of a model into the store, with the GGUF as its only layer; return the marker."""
    place = json.loads(job.params.spec)
    store = OllamaStore(Path(place["store"]))
    gguf = Path(str(job.input.gguf))
    weights = digest_and_size(gguf)
    blob = store.blob_file(weights["sha256"])
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(gguf.read_bytes())
    layer = {"digest": f"sha256:{weights['sha256']}", "size": weights["size"]}
    content = json.dumps({"layers": [layer], "config": layer}).encode()
    name = f"{job.wildcards.model}:{job.wildcards.quant.lower()}"
    manifest = store.manifest_file(name)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "target": "store", "store": place["store"], "manifest_digest": digest}


if __name__ == "__main__":
    JobScheduler.schedule = finish_all
    snakemake.cli.main()
