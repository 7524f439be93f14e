"""Write the tables of tests/faults/README.md from files of outcomes; a table that they say nothing of stays.

python tests/faults/write_table.py kills.jsonl signals.jsonl disk.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

from outcomes import read, write

if __name__ == "__main__":
    write([outcome for name in sys.argv[1:] for outcome in read(Path(name))])
