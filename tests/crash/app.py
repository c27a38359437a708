"""What the workers of a crash test load: `celery -A tests.crash.app worker`."""

import json
import os
from pathlib import Path

from tests.crash.tasks import build

app = build(json.loads(os.environ["CRASH_CONF"]), Path(os.environ["CRASH_FOLDER"]))
