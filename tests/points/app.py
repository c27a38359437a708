"""What the workers of a tour load: `celery -A tests.points.app worker`."""

import json
import os
from pathlib import Path

from tests.points.tasks import build

app = build(json.loads(os.environ["CRASH_CONF"]), Path(os.environ["CRASH_FOLDER"]), worker=True)
