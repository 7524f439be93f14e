"""Every file of config/examples: what it says of itself is so, and with inputs in place of its placeholders it builds.

The inputs are ghosts: checkpoints of the full size with headers and no weights, as config/shapes has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake_runs import REPOSITORY, planned_jobs, run_snakemake

from ollamake.configuration import read_configuration
from ollamake.ghost_checkpoint import ghost_of_shape, write_ghost_shard
from ollamake.placeholders import PLACEHOLDER, placeholders
from ollamake.shape import Shape, read_shape, shipped_shape

EXAMPLES = sorted((REPOSITORY / "config/examples").glob("*.yaml"))
SCHEMA = REPOSITORY / "config/schemas/config.schema.yaml"
SHAPES = REPOSITORY / "config/shapes"
