"""What the workers of a soak load, and its client: `celery -A tests.soak.app worker`."""

import json
import os
from pathlib import Path

from tests.soak.tasks import build

app = build(json.loads(os.environ["CRASH_CONF"]), Path(os.environ["CRASH_FOLDER"]))
