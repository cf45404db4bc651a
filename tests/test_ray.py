"The same extraction on a Ray cluster of two workers, one of which is killed"
import os, signal, subprocess, sys, threading, time

import numpy as np
import pandas as pd
import psutil
import pytest
from skimage.data import astronaut

from madd.core import UserError
from madd.extract import extract
from madd.manifest import video_row, write_manifest
from madd.media import save_image, write_video

ray = pytest.importorskip('ray', reason='RAY IS NOT INSTALLED: pip install ray, or extraction on a cluster goes untested')
SETTINGS = dict(size=128, n_frames=10, faces='all')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Seven clips and two files that are none"
    root, rows = tmp_path_factory.mktemp('root'), []
    for k in range(7):
        write_video(root/f'{k}.mp4', [np.roll(astronaut()[:320, 66:386], 2*i + 5*k, 1) for i in range(20)], preset='ultrafast')
        rows.append(video_row(f'{k}.mp4', k % 2, 'toy', 'Nothing' if k % 2 else 'original'))
    (root/'text.mp4').write_text('no clip'); save_image(root/'plain.png', np.zeros((99, 99, 3), np.uint8))
    write_manifest(pd.DataFrame(rows + [video_row('text.mp4', 0), video_row('plain.png', 0)]), root/'videos.parquet')
    return root


@pytest.fixture(scope='module')
def cluster():
    os.environ.setdefault('RAY_ENABLE_UV_RUN_RUNTIME_ENV', '0')
    ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def files(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()}


def at_work():
    "Ray workers that are in the middle of a file"
    return [p for p in psutil.process_iter(['name', 'cmdline']) if 'ray::_ray_file' in ' '.join(p.info['cmdline'] or [p.info['name'] or ''])]


def test_a_worker_dies_and_the_manifest_is_the_same(root, cluster, tmp_path):
    here = extract(root/'videos.parquet', tmp_path/'here', **SETTINGS)
    result, killed = [], []
    job = threading.Thread(target=lambda: result.append(extract(root/'videos.parquet', tmp_path/'there', engine='ray', **SETTINGS)), daemon=True)
    job.start()
    limit = time.time() + 90
    while not killed and job.is_alive() and time.time() < limit:
        if list((tmp_path/'there').glob('parts/**/*.json')):
            for p in at_work()[:1]: os.kill(p.pid, signal.SIGKILL); killed.append(p.pid)
        time.sleep(.005)
    job.join(90)
    assert killed, 'no Ray worker was caught in the middle of a file'
    assert result and result[0].equals(here)
    assert files(tmp_path/'there') == files(tmp_path/'here')                     # the manifest, the crops and the books, byte for byte
    assert len(here[here.reason == '']) == 70 and 'not a clip' in here.reason[here.path == 'text.mp4'].item()


def test_what_one_engine_began_the_other_finishes(root, cluster, tmp_path):
    videos = pd.read_parquet(root/'videos.parquet').assign(path=lambda d: [str(root/p) for p in d.path])
    extract(videos[:4], tmp_path, **SETTINGS)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob('parts/**/*.json')}
    both = extract(videos[:6], tmp_path, engine='ray', **SETTINGS)
    assert both.video.nunique() == 6 and all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_memory_cannot_be_shared(root, cluster):
    with pytest.raises(UserError, match='memory://'): extract(root/'videos.parquet', 'memory://ray', engine='ray', **SETTINGS)


def test_without_ray_one_sentence():
    "In a process that has no Ray"
    code = ("import sys; sys.modules['ray'] = None\nfrom madd.core import UserError\nfrom madd.extract import _ray\n"
            "try: _ray()\nexcept UserError as e: print(e)")
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(said) == 1 and 'pip install ray' in said[0]
