"""What `quantizations: auto` takes is the plan's recommendation, or the plan's reason why there is none."""

import json
from pathlib import Path

import pytest

from ollamake.errors import OllamakeError
from ollamake.planned_quantization import quantization_of_plan


def test_the_recommended_type(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"model": "m", "recommendation": {"type": "Q6_K"}, "no_recommendation": None}))
    assert quantization_of_plan(file) == "Q6_K"


def test_no_recommendation(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"model": "m", "recommendation": None, "no_recommendation": "nothing fits RAM."}))
    with pytest.raises(OllamakeError, match=r"models\.m\.quantizations is auto, but nothing fits RAM\. All .*plan\.md"):
        quantization_of_plan(file)
