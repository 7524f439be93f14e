"""The README's table of what fits 36 GiB, from the plan itself."""

from __future__ import annotations

from typing import Any

from ollamake.plan_figures import divergence

BEGIN, END = "<!-- the plan of Qwen2.5-32B on 36 GiB -->\n", "<!-- end of the plan -->\n"
CONFIG = """\
models:
  rag: {base: Qwen/Qwen2.5-32B-Instruct, quantizations: auto}
hardware: {gpus: [{name: A100-40GB, memory_gib: 36}], ram_gib: 64}
"""


def table(plan: dict[str, Any]) -> str:
    """Return the candidates of a plan.json as a table in Markdown."""
    lines = [
        "| type | file | bits a weight | with 8,192 tokens | fits 34.5 GiB | largest context | expected quality (KLD) |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    for row in plan["rows"]:
        recommended = row["type"] == plan["recommendation"]["type"]
        if not (row.get("candidate") or row["type"] == plan["outtype"]):
            continue
        fit, quality = row["fits"][0], row["quality"]
        fits = "yes" if fit["fits"] else f"lacks {-fit['free_mib'] / 1024:.1f} GiB"
        name = f"**{row['type']}**, recommended" if recommended else row["type"]
        cells = [
            name,
            f"{row['bytes'] / 1e9:.2f} GB",
            f"{row['bits_per_weight']:.2f}",
            f"{fit['total_mib'] / 1024:.1f} GiB",
            fits,
            f"{fit['largest_context']['f16']:,}" if fit["fits"] else "",
            f"{quality['class']} ({divergence(quality['kld'])})" if quality else "not published without a matrix",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
