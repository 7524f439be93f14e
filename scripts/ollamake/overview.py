"""What the records of a finished model say in a few words: what it was built from, what fits, what it cost, how good it is.

Texts in the sentences are as the records have them; whoever shows them escapes them for his medium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ollamake.build_jobs import Job
from ollamake.plan_figures import parameters

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Build:
    """The records of one model, as they stand in results/{model}; None for what was not asked for.

    ``ggufs``: the unquantized one first, then those that are registered; ``markers``: the registrations, in any order.
    """

    model: str
    merge_plan: Record
    plan: Record
    inputs: Record
    ggufs: Sequence[Record]
    markers: Sequence[Record]
    template: Record
    template_check: Record
    merge_report: Record | None = None
    """Of a model that is served as an adapter it is its base's; None where Ollama had the base already."""
    adapter: Record | None = None
    """The record of the adapter's GGUF where the model is the base's GGUF with that beside it."""
    quality: Record | None = None
    answers: Record | None = None
    imatrix: Record | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """plan, merge_report, quality -> SVG, where there is one."""
    jobs: Sequence[Job] = field(default_factory=list)

    @property
    def registered(self) -> list[Record]:
        """The records of the GGUFs that are registered, largest first."""
        return sorted(self.ggufs[1:], key=lambda record: -record["size"])

    @property
    def shown_ggufs(self) -> list[Record]:
        """The unquantized one, if it is one, and those that are registered, largest first."""
        registered = self.registered
        return registered if self.ggufs[0] in registered else [self.ggufs[0], *registered]

    @property
    def registrations(self) -> list[Record]:
        """The markers, of the largest model first."""
        return sorted(self.markers, key=lambda marker: -marker["gguf"]["size"])

    @property
    def base_files(self) -> dict[str, Record]:
        """Path -> size and sha256 of the base's weight files."""
        adapters = {adapter["path"] for adapter in self.merge_plan["adapters"]}
        return {path: entry for path, entry in self._inputs.items() if path not in adapters}

    @property
    def adapter_files(self) -> dict[str, Record]:
        """Path -> size and sha256 of the adapters' weight files, as far as they are known."""
        served = {} if self.adapter is None else {one["path"]: one for one in self.adapter["adapters"]}
        known = {**self._inputs, **served}
        paths = [adapter["path"] for adapter in self.merge_plan["adapters"]]
        return {path: known[path] for path in paths if path in known}

    @property
    def _inputs(self) -> Mapping[str, Record]:
        return {} if self.merge_report is None else self.merge_report["inputs"]

    def called(self, folder: str) -> str:
        """Return what people call a folder: of what was fetched from the hub the id and commit there."""
        return str(self.inputs.get("hub", {}).get(folder, folder))

    @property
    def is_merged(self) -> bool:
        """Whether the adapters, if there are any, were merged into the weights."""
        return self.adapter is None

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """(what warns, the warning) of all records."""
        found = [("inputs", text) for text in self.inputs.get("warnings", [])]
        if self.is_merged and self.merge_report is not None:
            found += [("merge", text) for text in self.merge_report["warnings"]]
        found += [("plan", text) for text in self.plan["warnings"]]
        found += [("prompts", text) for text in self.template_check["warnings"]]
        if self.imatrix is not None:
            found += [("importance matrix", text) for text in self.imatrix["warnings"]]
        if self.quality is not None:
            found += [("evaluation text", text) for text in self.quality["text"]["warnings"]]
            found += [
                (f"quality of {row['type']}", failure["sentence"])
                for row in self.quality["rows"]
                if not row["compared_only"]
                for failure in row["verdict"]["failures"]
            ]
        if self.answers is not None:
            found += [(f"answers of {one['label']}", one["sentence"]) for one in self.answers["failures"]]
        return found


def summary(build: Build) -> str:
    """Return in one or two sentences what was built from what, and where it answers."""
    adapters = build.merge_plan["adapters"]
    base = build.called(build.inputs["base"])
    how = "merged into it" if build.is_merged else "beside it, which is added while it runs"
    origin = (
        f"{base} with {_listed([adapter_words(build, adapter) for adapter in adapters])} {how}"
        if adapters
        else f"{base} as it is, without an adapter"
    )
    kinds = [record["type"] for record in build.registered]
    names = [marker["name"] for marker in build.registrations]
    places = list(dict.fromkeys(place(marker) for marker in build.registrations))
    size = f"{build.plan['architecture']}, {parameters(build.plan['parameters'])} parameters"
    made = f"It was quantized to {_listed(kinds)} and" if build.is_merged else f"It is in {_listed(kinds)} and"
    return f"{build.model} ({size}) is {origin}. {made} is registered as {_listed(names)} in {_listed(places)}."


def adapter_words(build: Build, adapter: Record) -> str:
    """Return an adapter in words: its folder, method, rank and alpha, and its weight where that is not 1."""
    folder = build.called(adapter["path"].rpartition("/")[0] or adapter["path"])
    weight = "" if adapter["weight"] == 1 else f", weight {adapter['weight']:g}"
    return f"the adapter {folder} ({method(adapter['config'])}{weight})"


def method(config: Record) -> str:
    """Return the PEFT method of an adapter_config.json in words: LoRA, rank 32, alpha 32, rsLoRA."""
    kind = str(config.get("peft_type", "unknown method"))
    words = ["LoRA" if kind == "LORA" else kind]
    words += [f"rank {config['r']}"] if config.get("r") else []
    words += [f"alpha {config['lora_alpha']}"] if config.get("lora_alpha") else []
    words += ["rsLoRA"] if config.get("use_rslora") else []
    words += ["DoRA"] if config.get("use_dora") else []
    return ", ".join(words)


def targets(config: Record) -> str:
    """Return which modules an adapter changes, as its config says it."""
    names = config.get("target_modules")
    named = ", ".join(names) if isinstance(names, list) else str(names or "")
    saved = config.get("modules_to_save")
    return ", ".join(part for part in (named, *(saved or [])) if part)


def merge_sentences(report: Record) -> list[str]:
    """Return what the merge changed and how much of that is stored."""
    totals = report["totals"]
    if not report["adapters"]:
        return [f"There is no adapter: all {totals['tensors']} tensors are the base's."]
    sentences = [f"{totals['edited']} of {totals['tensors']} tensors were changed."]
    if totals["relative_norm"] is not None:
        sentences.append(
            f"The update is {totals['relative_norm']:.2%} as large as the weights it was added to (Frobenius norms)."
        )
    if totals["survival"] is not None:
        sentences.append(
            f"{totals['survival']:.2%} of it is stored after rounding; of the tensor that keeps least,"
            f" {totals['smallest_survival']:.2%}. The arithmetic is float32, rounded once."
        )
    return sentences


def adapter_sentences(adapter: Record) -> list[str]:
    """Return what stands beside the base where nothing was merged; ``adapter`` is the record of its GGUF."""
    ranks = ", ".join(map(str, adapter["ranks"]))
    return [
        f"Nothing was merged: llama.cpp adds the update of {adapter['weights']} weights (rank {ranks}) while it runs.",
        f"Its GGUF has {parameters(adapter['parameters'])} parameters in float32, and the whole update has the adapter's norm,"
        f" {adapter['update_norm']:.6g}.",
    ]


def place(marker: Record) -> str:
    """Return where a model is registered."""
    if marker["target"] == "store":
        return f"the store {marker['store']}"
    version = marker.get("server_version")
    return f"Ollama {version} at {marker['host']}" if version else f"Ollama at {marker['host']}"


def moment(text: str) -> str:
    """Return the time of a marker to the minute, with its zone: 2026-11-27 07:03 UTC."""
    time = datetime.fromisoformat(text)
    return time.strftime("%Y-%m-%d %H:%M ") + (time.tzname() or "")


def prompt_counts(check: Record) -> dict[str, int]:
    """Return how many of the test conversations came out how: equal, refused, deviates, differs."""
    counts: dict[str, int] = {}
    for one in check["conversations"]:
        counts[one["status"]] = counts.get(one["status"], 0) + 1
    return counts


def prompts_agree(check: Record) -> bool:
    """Return whether every conversation that the template takes is prompted as in training."""
    counts = prompt_counts(check)
    return bool(counts.get("equal")) and not counts.get("differs") and not check["warnings"]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "nothing"
