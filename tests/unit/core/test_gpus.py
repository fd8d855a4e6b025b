import multiprocessing
import time

import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import own_gpus, visible_gpus


def hold(folder, name, count, seconds, events):
    with own_gpus(count, ["0", "1", "2"], folder) as gpus:
        events.put((time.monotonic(), "start", name, gpus))
        time.sleep(seconds)
        events.put((time.monotonic(), "end", name, gpus))


def test_visible_gpus_are_those_of_the_environment():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-ab"}) == ["2", "GPU-ab"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_more_gpus_than_there_are(tmp_path):
    with pytest.raises(StudyError, match="asks for 2 GPUs, but this machine shows 1"), own_gpus(2, ["0"], tmp_path):
        pass


def test_no_two_jobs_share_a_gpu(tmp_path):
    context = multiprocessing.get_context("fork")
    events = context.Queue()
    counts = [1, 2, 1, 3, 1, 2, 1, 1]
    jobs = [context.Process(target=hold, args=(tmp_path, i, count, 0.1, events)) for i, count in enumerate(counts)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    in_use = set()
    for _, kind, name, gpus in sorted(events.get() for _ in range(2 * len(jobs))):
        assert len(gpus) == counts[name]
        if kind == "start":
            assert not in_use & set(gpus)
            in_use |= set(gpus)
        else:
            in_use -= set(gpus)


def test_a_killed_job_frees_its_gpu(tmp_path):
    context = multiprocessing.get_context("fork")
    events = context.Queue()
    job = context.Process(target=hold, args=(tmp_path, "killed", 3, 60, events))
    job.start()
    events.get(timeout=10)
    job.kill()
    job.join()
    with own_gpus(3, ["0", "1", "2"], tmp_path) as gpus:
        assert gpus == ["0", "1", "2"]
