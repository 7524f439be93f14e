"""The first page of the report: one model, from what it was built to what it costs, as HTML."""

from __future__ import annotations

from markupsafe import Markup

from ollamake.answers_comparison import demanded
from ollamake.build_jobs import costs
from ollamake.html_page import bullets, code, drawing, element, joined, page, sha256, table
from ollamake.overview import (
    Build,
    Record,
    adapter_sentences,
    merge_sentences,
    method,
    moment,
    place,
    prompt_counts,
    summary,
    targets,
)
from ollamake.overview_cards import cards, size
from ollamake.plan_figures import columns, deciding_index, duration, gb, gib, thousands
from ollamake.plan_sentences import advice, asked, places, subject
from ollamake.quality_figures import mean_kld, percent, plain, with_error
from ollamake.quality_table import speed


def overview_page(build: Build) -> str:
    """Return the overview of a model."""
    parts = [element("h1", build.model), element("p", summary(build), "lead"), cards(build), _warnings(build)]
    sections = (_origins, _results, _fit, _merge, _quality, _answers, _prompts, _registration, _costs)
    return page(f"{build.model}: overview", [*parts, *(section(build) for section in sections)])


def _warnings(build: Build) -> Markup:
    found = build.warnings
    if not found:
        return element("p", "No step of the build warned of anything.")
    items = [joined([element("b", f"{about}: "), text]) for about, text in found]
    return element("div", joined([element("h3", "Warnings"), bullets(items)]), "warnings")


def _origins(build: Build) -> Markup:
    rows = [
        ("base", code(path), size(entry["size"]), sha256(entry["sha256"])) for path, entry in build.base_files.items()
    ]
    for path, entry in build.adapter_files.items():
        rows.append(("adapter", code(path), size(entry["size"]), sha256(entry["sha256"])))
    parts = [
        element("h2", "Built from"),
        table(
            "Weights that were read, with their sha256 at that time.", ("role", "file", "size", "sha256"), rows, (2,)
        ),
    ]
    adapters = [
        (code(one["path"]), method(one["config"]), targets(one["config"]), str(one["tensors"]), f"{one['weight']:g}")
        for one in build.merge_plan["adapters"]
    ]
    if adapters:
        titles = ("adapter", "method", "changes", "tensors", "weight")
        parts.append(table("How the adapter was trained, by its adapter_config.json.", titles, adapters, (3, 4)))
    return joined(parts)


def _results(build: Build) -> Markup:
    rows = [
        (record["type"], code(record["file"]), size(record["size"]), f"{record['bits_per_weight']:.2f}",
         "used" if record.get("imatrix") else "", sha256(record["sha256"]))
        for record in build.shown_ggufs
    ]  # fmt: skip
    titles = ("type", "file", "size", "bits a weight", "importance matrix", "sha256")
    if not any(row[4] for row in rows):
        titles, rows = titles[:4] + titles[5:], [row[:4] + row[5:] for row in rows]
    taken = [record["source"] for record in build.registered if "source" in record]
    first = "" if taken else f" the first is the {'model' if build.is_merged else 'base'} before quantization."
    caption = f"GGUF files;{first} Ollama holds the quantized ones under these sha256."
    parts = [element("h2", "What was built"), table(caption, titles, rows, (2, 3))]
    parts += [
        element(
            "p",
            f"The weights are those of {one['ollama']}, which Ollama had already ({one['where']}): {one['norms']} norms in it are"
            " the base's, to the bit.",
        )
        for one in taken
    ]
    if build.adapter is not None:
        row = (code(build.adapter["file"]), size(build.adapter["size"]), sha256(build.adapter["sha256"]))
        parts.append(table("The adapter, which stands beside each of them.", ("file", "size", "sha256"), [row], (1,)))
    return joined(parts)


def _fit(build: Build) -> Markup:
    plan = build.plan
    parts = [element("h2", "What fits"), element("p", subject(plan))]
    parts.append(bullets(joined([element("b", title), ": ", text]) for title, text in advice(plan)))
    with_matrix = {record["type"]: "imatrix" in record for record in build.registered}
    sized = [
        row for row in (*plan["rows"], *plan["with_imatrix"]) if row["type"] in with_matrix and "refused" not in row
    ]
    # Of a type that was sized with an importance matrix and without, the row that was built is the last.
    found = {row["type"]: row for row in sorted(sized, key=lambda row: row["imatrix"] == with_matrix[row["type"]])}
    shown = [column for column in columns(plan, None) if _is_shown(column.title, plan)]
    contexts = {record["type"]: _num_ctx(build, record) for record in build.registered}
    rows = [
        (kind, *(column.cell(found[kind]) for column in shown), contexts[kind])
        for kind in (record["type"] for record in build.registered)
        if kind in found
    ]
    titles = ("type", *(column.title for column in shown), "num_ctx registered")
    numbers = [index + 1 for index, column in enumerate(shown) if column.numeric] + [len(titles) - 1]
    note = "The types that are registered. Expected quality was published elsewhere for another model."
    parts += [table(note, titles, rows, numbers), element("p", f"{asked(plan)} {places(plan)}")]
    parts.append(_picture(build, "plan", "Memory that each type takes, against the memory there is"))
    return joined(parts)


def _is_shown(title: str, plan: Record) -> bool:
    """Return whether a column of the plan's table is in the overview's, too."""
    if title.startswith("largest context"):
        return title.endswith(f", {plan['asked']['kv_cache']}")
    return title not in ("importance matrix", "bits a weight", "weights GiB", "PPL")


def _picture(build: Build, name: str, what: str) -> Markup:
    return drawing(build.pictures[name], what) if name in build.pictures else Markup("")


def _num_ctx(build: Build, record: Record) -> str:
    for marker in build.markers:
        if marker["gguf"]["sha256"] == record["sha256"]:
            value = marker["request"].get("parameters", {}).get("num_ctx")
            return "Ollama's own" if value is None else thousands(int(value))
    return ""


def _merge(build: Build) -> Markup:
    if build.adapter is not None:
        return joined([element("h2", "Adapter"), element("p", " ".join(adapter_sentences(build.adapter)))])
    assert build.merge_report is not None
    parts = [element("h2", "Merge"), element("p", " ".join(merge_sentences(build.merge_report)))]
    changes = build.merge_report["config_changes"]
    if changes:
        parts.append(bullets(f"config.json: {key} is now {value}." for key, value in changes.items()))
    parts.append(_picture(build, "merge_report", "Size of the update over the layers, and how much of it is stored"))
    return joined(parts)


def _quality(build: Build) -> Markup:
    heading = element("h2", "Quality, measured")
    quality = build.quality
    if quality is None and not build.is_merged:
        said = "Not measured: what the base loses by quantization is measured with the base, as a model of its own."
        return joined([heading, element("p", said)])
    if quality is None:
        said = "Not measured: no text was given (quality.text or quality.chat of the model)."
        return joined([heading, element("p", said)])
    checkpoints = quality["checkpoints"]
    rows = [
        (
            row["type"]
            + (" (bitsandbytes)" if row in checkpoints else " (compared only)" if row["compared_only"] else ""),
            mean_kld(row),
            plain(row["kld_p99"]),
            with_error(row["ppl_ratio"], row["ppl_ratio_error"]),
            percent(row["same_top"], row["same_top_error"]),
            "" if row["generation_per_second"] is None else speed(row["generation_per_second"]),
            _verdict(row),
        )
        for row in (*quality["rows"], *checkpoints)
    ]
    titles = ("type", "mean KLD", "KLD, 99 %", "PPL ratio", "same top token", "tokens a second", "limits")
    if not any(row[5] for row in rows):
        titles, rows = titles[:5] + titles[6:], [row[:5] + row[6:] for row in rows]
    reference = quality["reference"]
    caption = (
        f"Against the unquantized fine-tune ({reference['type']}) on {thousands(reference['tokens'])} tokens of your own text."
        " KLD: Kullback-Leibler divergence in nats a token, 0 is no change. PPL ratio: perplexity by the fine-tune's, 1 is no"
        " change. ±: one standard error of sampling."
    )
    picture = _picture(build, "quality", "Quality of each type against its size")
    return joined(
        [heading, bullets(quality["sentences"]), table(caption, titles, rows, range(1, len(titles) - 1)), picture]
    )


def _verdict(row: Record) -> object:
    passes = row["verdict"]["passes"]
    if passes is None:
        return "none set"
    if passes:
        return element("span", "within", "good")
    beyond = ", ".join(failure["limit"] for failure in row["verdict"]["failures"])
    return element("span", f"beyond {beyond}", "" if row["compared_only"] else "bad")


def _answers(build: Build) -> Markup:
    if build.answers is None:
        return Markup("")
    rows = [
        (label, code(score["name"]), str(score["right"]), str(score["asked"]), f"{score['score']:.1%}",
         _verdict_of_answers(score["passes"]))
        for label, score in build.answers["scores"].items()
    ]  # fmt: skip
    caption = f"Your own questions at temperature 0; {demanded(build.answers)}"
    titles = ("asked", "in Ollama", "right", "of", "share", "verdict")
    return joined([element("h2", "Answers"), table(caption, titles, rows, (2, 3, 4))])


def _verdict_of_answers(passes: bool | None) -> object:
    if passes is None:
        return ""
    return element("span", "enough", "good") if passes else element("span", "too few", "bad")


def _prompts(build: Build) -> Markup:
    check, counts = build.template_check, prompt_counts(build.template_check)
    parts = [element("h2", "Prompts")]
    if counts:
        said = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        end = f" An answer ends with {check['end_of_turn']}." if check["end_of_turn"] else ""
        served = (
            f" The server counted the tokens of {check['evaluated']} of them as well." if check["evaluated"] else ""
        )
        parts.append(
            element(
                "p",
                f"Of {sum(counts.values())} test conversations: {said}. Rendered by {check['renderer']}, compared with the"
                f" tokenizer's chat template, text and token ids.{served}{end}",
            )
        )
    else:
        parts.append(element("p", "The prompts were not compared."))
    origin = build.template.get("origin")
    parts += [element("p", f"The TEMPLATE {origin}.")] if origin else []
    return joined(parts)


def _registration(build: Build) -> Markup:
    rows = [
        (code(marker["name"]), place(marker), moment(marker["time"]), sha256(marker["manifest_digest"]))
        for marker in build.registrations
    ]
    caption = (
        "After registration each was read back and compared: weights, system prompt, template, license, parameters."
    )
    parts = [
        element("h2", "Registered in Ollama"),
        table(caption, ("name", "where", "when", "digest of the manifest"), rows),
    ]
    for text in dict.fromkeys(marker["request"].get("system") for marker in build.registrations):
        if text:
            parts += [element("h3", "System prompt"), element("pre", text, "prose")]
    return joined(parts)


def _costs(build: Build) -> Markup:
    found = costs(list(build.jobs))
    parts = [element("h2", "What it took")]
    if found:
        rows = [
            (code(one.rule), str(one.jobs), duration(one.seconds), duration(one.longest.seconds),
             "" if one.peak_mib is None else f"{gib(one.peak_mib)}")
            for one in found
        ]  # fmt: skip
        titles = ("rule", "jobs", "time of all", "longest job", "peak memory of one, GiB")
        caption = (
            f"Each job as it last ran, {duration(sum(one.seconds for one in found))} in all if one ran after the other."
            " Memory is resident memory; of jobs under a second it is not known."
        )
        parts.append(table(caption, titles, rows, (1, 2, 3, 4)))
    else:
        parts.append(element("p", "There are no benchmarks of this model's jobs."))
    if build.is_merged and build.merge_report is not None:
        shards = sum(output["size"] for output in build.merge_report["outputs"].values())
        made = gb(shards + sum(record["size"] for record in build.ggufs))
        said = f"All merged shards and GGUFs together are {made} GB; intermediates may have been removed since."
        parts.append(element("p", said))
    if deciding_index(build.plan) is None:
        parts.append(element("p", "Nothing was known of the hardware that serves."))
    return joined(parts)
