"""Shared fixtures. Test helpers are imported by their path below ``tests``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
