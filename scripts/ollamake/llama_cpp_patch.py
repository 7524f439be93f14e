"""What ollamake changes in the pinned source of llama.cpp, so that its figures are right and are all printed.

llama-perplexity can be told to parse special tokens; without that a chat is scored as if "<|im_start|>" were several words.
llama-imatrix has the option of that name already.

llama-perplexity and llama-imatrix print all that they have to say. A thread of its own prints, and a program that ends does not
wait for it (llama.cpp's issue 22142): on a busy machine the last lines, which are the results, are lost now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError

PARSE_SPECIAL = "--parse-special"


@dataclass(frozen=True)
class Replacement:
    """A piece of text that stands exactly once in a file of the tree, and what stands there afterwards."""

    file: str
    old: str
    new: str


_PRINT_ALL = """    // Changed by ollamake: what is still to be printed would be lost.
    common_log_flush(common_log_main());
    return result;
}
"""

PATCH = (
    Replacement(
        "tools/perplexity/perplexity.cpp",
        # In perplexity(). The same call in perplexity_v2() is followed by something else.
        """    LOG_INF("%s: tokenizing the input ..\\n", __func__);

    std::vector<llama_token> tokens = common_tokenize(ctx, params.prompt, true);

    auto tim2""",
        """    LOG_INF("%s: tokenizing the input ..\\n", __func__);

    std::vector<llama_token> tokens = common_tokenize(ctx, params.prompt, true, params.parse_special);

    auto tim2""",
    ),
    Replacement(
        "common/arg.cpp",
        """            params.parse_special = true;
        }
    ).set_examples({LLAMA_EXAMPLE_IMATRIX}));""",
        """            params.parse_special = true;
        }
    ).set_examples({LLAMA_EXAMPLE_IMATRIX, LLAMA_EXAMPLE_PERPLEXITY}));""",
    ),
    Replacement(
        "tools/perplexity/main.cpp",
        """int main(int argc, char ** argv) {
    return llama_perplexity(argc, argv);
}
""",
        f"""#include "log.h"

int main(int argc, char ** argv) {{
    const int result = llama_perplexity(argc, argv);
{_PRINT_ALL}""",
    ),
    Replacement(
        "tools/imatrix/imatrix.cpp",
        """int main(int argc, char ** argv) {
""",
        f"""static int llama_imatrix(int argc, char ** argv);

int main(int argc, char ** argv) {{
    const int result = llama_imatrix(argc, argv);
{_PRINT_ALL}
static int llama_imatrix(int argc, char ** argv) {{
""",
    ),
)


def apply_patch(tree: Path, patch: tuple[Replacement, ...] = PATCH) -> list[dict[str, Any]]:
    """Change the files of ``tree`` in place and return what was changed, for source.json: [{file, old, new}].

    Nothing is written unless all of it can be. Raises OllamakeError if a text is not there exactly once: the source is then
    not the one this patch was made for.
    """
    changed: dict[Path, str] = {}
    for one in patch:
        path = tree / one.file
        try:
            text = changed[path] if path in changed else path.read_bytes().decode("utf-8")
        except OSError as error:
            raise OllamakeError(
                f"{path}: {error.strerror}; ollamake changes this file of llama.cpp's source."
            ) from error
        found = text.count(one.old)
        if found != 1:
            raise OllamakeError(
                f"{path}: the text that ollamake changes in llama.cpp's source is there {found} times, expected once:\n"
                f"{one.old}\nThe pinned version and the patch (scripts/ollamake/llama_cpp_patch.py) do not belong together."
            )
        changed[path] = text.replace(one.old, one.new)
    for path, text in changed.items():
        path.write_bytes(text.encode("utf-8"))
    return [{"file": one.file, "old": one.old, "new": one.new} for one in patch]
