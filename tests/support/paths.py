"""Where the repository, the fixtures and the fixtures of parity tests are."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# Folders of the same layout, made with other settings of the original implementations, may take the place of ours.
PARITY_FIXTURES = Path(os.environ.get("COMODAL_FIXTURES", FIXTURES))
