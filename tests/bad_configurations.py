"""Configurations that cannot be meant, and words of the message that refuses each: where, what is wrong, what to do."""

from __future__ import annotations

from ollamake.configuration_file import DEEPEST, LARGEST

GOOD = "models: {small: {base: base}}\n"
DOUBLING = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))

CASES: dict[str, tuple[str | bytes, list[str]]] = {
    # no YAML
    "tab": ("models:\n\tsmall: {base: base}\n", ["mine.yaml, line 2, column 1", "spaces, not by tabs", r"\tsmall"]),
    "bracket that is not closed": ("models: {small: {base: base}\n", ["mine.yaml, line 2, column 1", "expected ',' or '}'"]),
    "colon in a text": ("models:\n  small:\n    base: a: b\n", ["line 3, column 12", "in quotes"]),
    "alias of nothing": ("models: *nothing\n", ["line 1, column 9", "undefined alias"]),
    "two documents": (GOOD + "---\n" + GOOD, ["line 2, column 1", "remove the line ---"]),
    "zero byte": (b"models: {small: {base: a\x00b}}\n", ["line 1, column 25", "U+0000"]),
    "not UTF-8": ("models: {small: {base: モデル}}\n".encode("cp932"), ["mine.yaml, line 1", "expected UTF-8", "Shift_JIS"]),
    "UTF-16": (GOOD.encode("utf-16"), ["mine.yaml, line 1", "UTF-16", "iconv"]),
    # no keys with values
    "empty": ("", ["mine.yaml: expected keys with values", "nothing but comments"]),
    "only comments": ("# models: later\n", ["mine.yaml: expected keys with values", "nothing but comments"]),
    "list at the top": ("- models\n", ["mine.yaml: expected keys with values", "found a list"]),
    "text at the top": ("models", ["mine.yaml: expected keys with values", "found only 'models'"]),
    # more than any configuration has
    "huge": (GOOD + "#" * LARGEST, [f"mine.yaml has {LARGEST + len(GOOD):,} bytes", "Is it another file?", "{file: PATH}"]),
    "aliases that double": (DOUBLING + GOOD, ["line 19, column 6", "aliases written out", "at most 500,000"]),
    "alias within itself": ("models: &a\n  small: *a\n", ["line 1, column 9", "without end"]),
    "nested too deep": (f"models: {'[' * 99}{']' * 99}\n", [f"line 1, column {9 + DEEPEST - 1}", "more than 64 levels"]),
    "nested without end": ("models: " + "{a: " * 100_000, ["mine.yaml, line 1", "more than 64 levels"]),
    # what must not be run, or would be guessed
    "object of Python": (
        "models: {small: {base: !!python/object/apply:os.system ['touch PWNED']}}\n",
        ["line 1, column 24", "!!python/object/apply:os.system", "nothing is made or run for it"],
    ),
    "expression of YTE": (
        "__use_yte__: true\nmodels: {small: {base: \"?__import__('os').system('touch PWNED')\"}}\n",
        ["mine.yaml: __use_yte__", "write the values themselves"],
    ),
    "tag": ("models: {small: {base: !folder base}}\n", ["line 1, column 24", "the tag '!folder' has no meaning"]),
    "key twice": (
        "models:\n  small: {base: base}\n  other: {base: base}\n  small: {base: better}\n",
        ["mine.yaml, line 4, column 3", "'small' stands there a second time", "first is in line 2"],
    ),
    "key twice in JSON": ('{"models": {}, "models": {"a": {"base": "b"}}}', ["mine.yaml: the key 'models' stands twice"]),
    "name that YAML takes for true": ("models: {yes: {base: base}}\n", ["line 1, column 10", "key 'yes' as bool", '"yes"']),
    "name that YAML takes for octal": ("models: {010: {base: base}}\n", ["line 1, column 10", "'010' as int", '"010"']),
    "number without end": (f"tools: {{threads: {'9' * 5000}}}\n" + GOOD, ["line 1, column 18", "cannot be read as int"]),
    "no such day": ("models: {small: {base: 2026-02-31}}\n", ["line 1, column 24", "cannot be read as timestamp", "in quotes"]),
    # types and ranges
    "day for a folder": ("models: {small: {base: 2026-02-28}}\n", ["models.small.base: expected string", "in quotes it is"]),
    "yes for a host": (GOOD + "ollama: {host: on}\n", ["ollama.host: expected string or null; found True", "yes, no, on and"]),
    "list for models": ("models: [small]\n", ["models: expected keys with values; found ['small']"]),
    "text for a model": ("models: {small: base}\n", ["models.small: expected keys with values; found 'base'"]),
    "nothing for a model": ("models: {small: }\n", ["models.small: expected keys with values; found None"]),
    "lists for types": (
        "models: {small: {base: base, quantizations: [[Q8_0]]}}\n",
        ["models.small.quantizations[0]: expected string; found ['Q8_0']"],
    ),
    "not a number": (GOOD + "ollama: {timeout: .nan}\n", ["ollama.timeout: expected a finite number", "found nan"]),
    "infinity": (GOOD + "hardware: {ram_gib: .inf}\n", ["hardware.ram_gib: expected a finite number", "found inf"]),
    "out of range": (GOOD + "plan: {parallel: 65}\n", ["plan.parallel: expected at most 64; found 65"]),
    "unknown key": (GOOD + "olama: {target: store}\n", ["olama: unknown key. Did you mean 'ollama'?"]),
    "key at the wrong level": (GOOD + "quantizations: [Q8_0]\n", ["quantizations: unknown key. Known keys: models, defaults"]),
    "adapter twice": (
        "models: {small: {base: base, adapter: a, adapters: [{path: b}]}}\n",
        ["models.small", "adapter", "adapters"],
    ),
    "no base": ("models: {small: {adapter: a}}\n", ["models.small.base: missing", "base: /data/"]),
    "no models": ("ollama: {target: store}\nmodels: {}\n", ["models: is empty; at least one is needed"]),
}  # fmt: skip
