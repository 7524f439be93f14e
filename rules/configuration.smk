"""
What is read as a configuration is read by ollamake's own reader. Before the directive `configfile`, for the files that were
read before the Snakefile see profiles/default.
"""

import os
import sys

sys.path.insert(0, os.path.join(workflow.basedir, "scripts"))

from snakemake_configuration import load_configfile, read_strictly

read_strictly()
for file in workflow.config_settings.configfiles:
    if os.path.exists(file):  # of a submitted job it may be elsewhere
        load_configfile(file)
