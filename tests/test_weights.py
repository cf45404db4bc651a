"""The command that makes the weights in the box, at toy size: it trains, calibrates, measures, ships, goes on where it was and compares"""
import os, subprocess, sys
from pathlib import Path

import pytest
from safetensors import safe_open

from madd.core import read_json
from madd.media import save_image
from madd.sources import AstronautFaces

ROOT = Path(__file__).parents[1]
SMALL = ['size=64', 'batch_size=8', 'epochs=1', 'pretrain_epochs=1', 'workers=0', 'forge.pairs=8', 'forge.val_pairs=4', 'pretrained=false']
SMALL = [w for pair in SMALL for w in ('--set', pair)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    at, faces = tmp_path_factory.mktemp('weights'), AstronautFaces(22, seed=5)
    (at/'faces').mkdir()
    for i in range(len(faces)): save_image(at/'faces'/f'{i:02}.png', faces[i][1])
    def go(*words):
        return subprocess.run([sys.executable, ROOT/'bench'/'weights.py', '--out', 'weights', '--faces', 'faces', '--people', '8', '6', '6', *SMALL, *words],
                              cwd=at, env=os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1'), capture_output=True, text=True, timeout=600)
    return at, go, go('--ship', 'box')


def test_it_ships_a_calibrated_model_with_its_provenance(made):
    at, _, done = made
    assert done.returncode == 0, done.stderr
    assert {f.name for f in (at/'box').iterdir()} == {'README.md', 'config.json', 'config.yaml', 'environment.json', 'model.safetensors', 'results.json', 'train.json'}
    with safe_open(at/'box'/'model.safetensors', 'pt') as f: assert {str(t.dtype) for k in f.keys() if (t := f.get_tensor(k)).ndim == 4} == {'torch.float16'}
    notes = read_json(at/'box'/'config.json')['notes']
    assert notes['temperature'] > 0 and 0 <= notes['verdict']['low'] <= notes['verdict']['high'] <= 1
    assert not any(str(at) in f.read_text() for f in (at/'box').glob('*.[jmy]*') if f.suffix != '.safetensors')


def test_the_recipe_makes_what_is_in_the_box():
    from dataclasses import asdict
    from madd.runs import read_config
    from madd.model import model_folder
    assert asdict(read_config(model_folder('madd-lite')/'config.yaml')) == asdict(read_config(training='forge'))


def test_every_model_is_measured_on_both_sources(made):
    record = read_json(made[0]/'box'/'results.json')
    assert {(r['model'], r['dataset']) for r in record['rows']} == {(m, f'forge of {d}') for m in ('madd-lite', 'plain') for d in ('portraits', 'built-in identities')}
    about = record['about']
    assert {stage: [r['epoch'] for r in rows] for stage, rows in about['history'].items()} == {'first stage': [0], 'second stage': [0]}
    first, second = (about['history'][f'{n} stage'][0] for n in ('first', 'second'))
    assert first['where'] > 0 and 'where' not in second and {'ril', 'agda'} <= set(second) - set(first)   # the plain backbone was asked where, MADD was not
    for net in ('run', 'run/pretrain'):
        with safe_open(made[0]/'weights'/net/'model.safetensors', 'pt') as f: assert not any('ask' in k for k in f.keys())   # and nothing of the question is kept
    assert about['people'] == dict(test=6, val=8, train=8) and about['milliseconds_per_face'] > 0 and about['portraits_called_fake'][0]['n'] == 6


def test_a_second_call_trains_nothing_and_agrees(made):
    at, go, _ = made
    log, before = (at/'weights'/'run'/'log.txt').read_text(), (at/'box'/'model.safetensors').read_bytes()
    again = go('--ship', 'again', '--compare')
    assert again.returncode == 0, again.stderr
    assert (at/'again'/'model.safetensors').read_bytes() == before and (at/'weights'/'run'/'log.txt').read_text().count('training: epoch') == log.count('training: epoch')
    assert read_json(at/'again'/'results.json')['rows'] == read_json(at/'box'/'results.json')['rows']
