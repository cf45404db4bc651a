"The script for a GPU, rehearsed without one: nothing that was measured may be lost"
import importlib.util, json, sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[1]/'bench'


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    "bench/gpu.py as a module; what it changes is put back"
    monkeypatch.setattr(sys, 'path', [str(BENCH), *sys.path])
    spec = importlib.util.spec_from_file_location('gpu_script', BENCH/'gpu.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    module.CROPS = tmp_path/'crops.npz'
    yield module
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def go(gpu, monkeypatch, out, *words):
    "The report, and the word it ended with"
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--quick', '--device', 'cpu', '--out', str(out), *words])
    try: gpu.main(); said = ''
    except SystemExit as e: said = e.code
    return json.loads(next(Path(out).glob('gpu-*.json')).read_text()), said


def test_a_part_that_fails_costs_only_itself(gpu, monkeypatch, tmp_path):
    def falls(a, keep): keep(dict(rows=[1, float('nan')])); raise RuntimeError('out of memory')
    monkeypatch.setitem(gpu.PARTS, 'speed', falls)
    report, said = go(gpu, monkeypatch, tmp_path, '--only', 'speed', 'variants', 'loader')
    assert report['speed'] == dict(rows=[1, None], error='RuntimeError: out of memory') and 'error' in said
    assert 'run --prepare first' in report['variants']['note'] and report['loader']['images_per_second'] > 0
    assert str(tmp_path) not in json.dumps(report)


def test_without_time_nothing_begins_and_that_is_said(gpu, monkeypatch, tmp_path):
    report, said = go(gpu, monkeypatch, tmp_path, '--minutes', '0')
    assert said == '' and all(report[k] == dict(note='time was up') for k in gpu.PARTS)


def test_crops_come_back_as_they_were_packed(gpu):
    rng = np.random.default_rng(0)
    faces = np.stack([np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))) for _ in range(5)]).astype(np.uint8)
    files = [gpu.jpeg(f) for f in faces]
    np.savez(gpu.CROPS, files=np.frombuffer(b''.join(files), np.uint8), ends=np.cumsum([len(f) for f in files]), y=np.array([0, 1, 0, 1, 0]), split=np.array(['train']*3 + ['test']*2), video=np.array(list('abcde')))
    rgb, y, split = gpu.crops()
    assert all((a == gpu.picture(f)).all() for a, f in zip(rgb, files)) and np.abs(rgb.astype(int) - faces).mean() < 12
    assert y.tolist() == [0, 1, 0, 1, 0] and split.tolist() == ['train']*3 + ['test']*2


def test_a_gross_mistake_stands_out_from_mixed_precision(gpu, monkeypatch, tmp_path):
    report, _ = go(gpu, monkeypatch, tmp_path, '--only', 'precision')
    for name, rows in report['precision'].items():
        assert rows['one stage silenced']['maps'] > 3*rows['bf16']['maps'] > 0, name
    assert report['precision']['madd-lite']['one stage silenced']['probability'] > 5*report['precision']['madd-lite']['bf16']['probability']
