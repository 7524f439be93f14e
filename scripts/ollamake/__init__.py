"""The library behind the rules: typed functions without argparse, print or Snakemake."""

__version__ = "0.1.0"
