"""Snakemake reads configurations by ollamake's reader: what is wrong in a file is said with its line, and nothing in it is run.

Files of `--configfile` are read before the Snakefile, so profiles/default has this done as Snakemake reads its command line.
Where another workflow profile is used, rules/configuration.smk has it done, and looks at those files afterwards.

Made for Snakemake 9.27.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import snakemake.common.configfile
import snakemake.settings.types
from snakemake.exceptions import WorkflowError

from ollamake.configuration_file import read_configuration_file
from ollamake.errors import OllamakeError, printable


def load_configfile(file: str | Path) -> dict[str, Any]:
    """Return what a configuration file says. Raises WorkflowError, which Snakemake shows as one message."""
    try:
        return read_configuration_file(Path(file))
    except OllamakeError as error:
        raise WorkflowError(printable(str(error))) from None


def read_strictly() -> None:
    """Have Snakemake read configurations by :func:`load_configfile` from now on."""
    snakemake.common.configfile.load_configfile = load_configfile
    snakemake.settings.types.load_configfile = load_configfile
