"""Note which GPUs this job sees, and from when to when."""

import json
import os
import time
from pathlib import Path

from workflow_scripts.core.stage import run_stage


def hold(seen: Path, seconds: float) -> None:
    """Write to `seen` the GPUs, and the moments between which this job had them."""
    start = time.time()
    time.sleep(seconds)
    facts = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.time()}
    seen.write_text(json.dumps(facts))


if __name__ == "__main__":
    run_stage(hold)
