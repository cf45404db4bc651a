"""The examiner that draws faces, at toy size: it is trained, forges, and judges a model"""
import os, subprocess, sys
from pathlib import Path

from safetensors import safe_open

from madd.core import read_json
from madd.forge import METHODS
from madd.media import read_image, save_image
from madd.neural import NEURAL
from madd.sources import AstronautFaces

ROOT = Path(__file__).parents[1]


def test_it_judges_on_both_sources(tmp_path):
    faces = AstronautFaces(10, seed=5)
    (tmp_path/'faces').mkdir()
    for i in range(len(faces)): save_image(tmp_path/'faces'/f'{i:02}.png', faces[i][1])
    words = [sys.executable, ROOT/'bench'/'neural.py', *'--faces faces --people 2 6 6 --frames 1 --crfs 23 --jobs 1 --steps 2 --side 32 --work work --out neural.json --picture examples.jpg'.split()]
    go = lambda *more: subprocess.run([*words, *more], cwd=tmp_path, env=os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1'), capture_output=True, text=True, timeout=600)
    done = go()
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path/'neural.json')
    assert {(r['dataset'], r['method']) for r in record['rows']} == {(f'forge of {d}', m) for d in ('portraits', 'built-in identities') for m in (*METHODS, *NEURAL)}
    assert record['examiner']['people'] == 16 and record['people'] == {'forge of portraits': 6, 'forge of built-in identities': 6} and len(record['models']['madd-lite']) == 12
    assert abs(read_image(tmp_path/'examples.jpg').shape[0] - (1 + len(NEURAL))*.6*256) < 2
    assert all(len(list((tmp_path/'work').rglob(f'{m}/c23/videos/*.mp4'))) == 2*6 for m in NEURAL) and read_json(tmp_path/'work'/'swap'/'config.json')['people'] == 16
    assert record['gains'] == [] and go('--model', 'a=madd-lite', 'b=madd-lite').returncode == 0
    gains = read_json(tmp_path/'neural.json')['gains']               # a model against itself, on every slice
    assert len(gains) == 2*(1 + len(METHODS) + len(NEURAL)) and all(r['value'] == r['lo'] == r['hi'] == 0 and (r['model'], r['against']) == ('b', 'a') for r in gains)
    other = go('--steps', '3'); assert other.returncode and 'steps was 2 and is now 3' in other.stderr and 'Traceback' not in other.stderr


def test_the_examiner_is_in_no_wheel_and_no_training():
    from madd.endless import FAMILIES
    assert not set(NEURAL) & (set(METHODS) | set(FAMILIES))
    for f in (ROOT/'madd').rglob('*.safetensors'):
        with safe_open(f, 'pt') as weights: assert not {'names.weight', 'first.weight'} & set(weights.keys()), f'{f} draws faces'
