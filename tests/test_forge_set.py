"Forging a set: the same bytes whatever happens on the way"
import json, os, pickle, signal, subprocess, sys, time
from pathlib import Path

import pytest

from madd.core import UserError
from madd.forge import METHODS
from madd.forge_set import forge_set
from madd.media import video_info
from madd.sources import AstronautFaces

SET = dict(identities=6, frames=2, seed=3, size=128, crfs=(23, 40))
FILES = 6 * 2 + len(METHODS) * 6 * 3 + 3 + 1  # reals, forgeries with masks, splits, forge.json

CHILD = '''
import pickle, sys
from madd.core import UserError
from madd.forge_set import forge_set
if __name__ == '__main__':
    limit, faces = int(sys.argv[2]), pickle.load(open(sys.argv[3], 'rb'))
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: forge_set(sys.argv[1], faces, workers=2, **%r)
    except UserError as e: sys.exit(f'UserError: {e}')
''' % SET


def contents(root):
    "Every file of a set, temporary ones included"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob('*')) if p.is_file()}


def clips(root): return [p for p in Path(root).rglob('*.mp4') if not p.name.startswith('.')]


def start(tmp_path, faces, out, limit=0):
    "Run `forge_set` with two workers in a process group of its own"
    script, store = tmp_path/'child.py', tmp_path/'faces.pkl'
    script.write_text(CHILD)
    store.write_bytes(pickle.dumps(faces))
    return subprocess.Popen([sys.executable, script, out, str(limit), store], start_new_session=True, stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='1'))


def alive(group):
    "Processes of a group that still run (Linux only)"
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try: state, _, pgid = stat.read_text().rpartition(')')[2].split()[:3]
        except OSError: continue
        if int(pgid) == group and state not in 'ZX': found.append(stat.parent.name)
    return found


@pytest.fixture(scope='module')
def faces():
    source = AstronautFaces(n=6)
    return [source[i] for i in range(6)]


@pytest.fixture(scope='module')
def whole(faces, tmp_path_factory):
    "An undisturbed run in one process"
    return forge_set(tmp_path_factory.mktemp('forge')/'whole', faces, workers=1, **SET)


def test_tree(whole):
    assert len(contents(whole)) == FILES
    assert {p.name for p in (whole/'manipulated_sequences').iterdir()} == set(METHODS)
    for kind in ('c23', 'c40', 'masks'):
        names = sorted(p.stem for p in (whole/'manipulated_sequences'/'FaceSwap'/kind/'videos').iterdir())
        assert names == ['000_001', '001_000', '002_003', '003_002', '004_005', '005_004']
    info = video_info(whole/'original_sequences'/'youtube'/'c23'/'videos'/'000.mp4')
    assert (info.width, info.height, info.frames) == (128, 128, 2)
    notes = json.loads((whole/'forge.json').read_text())
    assert 'forgery' in notes['note'] and len({p['name'] for p in notes['identities'].values()}) == 6


def test_splits_are_official_and_disjoint(whole):
    seen = []
    for part in ('train', 'val', 'test'):
        pairs = json.loads((whole/'splits'/f'{part}.json').read_text())
        assert all(len(p) == 2 and all(len(x) == 3 and x.isdigit() for x in p) for p in pairs)
        seen += [x for p in pairs for x in p]
    assert sorted(seen) == [f'{i:03d}' for i in range(6)]  # everybody once: no identity in two splits


def test_other_seed_other_bytes(whole, faces, tmp_path):
    other = contents(forge_set(tmp_path/'other', faces, workers=1, **dict(SET, seed=4, crfs=(40,), frames=1)))
    real = 'original_sequences/youtube/c40/videos/000.mp4'
    assert other[real] != contents(whole)[real]


def test_settings_are_not_mixed(whole, faces):
    before = contents(whole)
    with pytest.raises(UserError, match='frames was 2 and is now 3'): forge_set(whole, faces, workers=1, **dict(SET, frames=3))
    assert contents(whole) == before


def test_killed_in_the_middle_then_resumed(whole, faces, tmp_path):
    "Two workers, SIGKILL, and one more run: byte for byte the undisturbed tree, and no worker outlives its parent"
    out = tmp_path/'killed'
    child = start(tmp_path, faces, out)
    until = time.time() + 120
    while len(clips(out)) < 12 and child.poll() is None and time.time() < until: time.sleep(.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    if Path('/proc').exists():
        until = time.time() + 20
        while alive(child.pid) and time.time() < until: time.sleep(.1)
        assert not alive(child.pid)
    left = contents(out)
    assert 12 <= len(clips(out)) < FILES - 4, 'the run was meant to be stopped half way'
    expected = contents(whole)
    assert all(expected[k] == v for k, v in left.items() if '.part.' not in k)  # what is there is complete
    forge_set(out, faces, workers=1, **SET)
    assert contents(out) == expected  # begun by two workers, finished by one


@pytest.mark.skipif(sys.platform == 'win32', reason='file size limits are a Unix thing')
def test_no_room_left(whole, faces, tmp_path):
    "A limit on file sizes stands in for a full disk: one sentence, and nothing half written"
    expected, out = contents(whole), tmp_path/'full'
    limit = sorted(len(v) for k, v in expected.items() if k.endswith('.mp4'))[-20]  # some clips fit, some do not
    child = start(tmp_path, faces, out, max(limit, len(expected['forge.json']) + 1))
    _, err = child.communicate(timeout=120)
    assert 'UserError: There is no room left' in err and 'Traceback' not in err, err
    left = contents(out)
    assert 'forge.json' in left and not any('.part' in k for k in left)
    assert all(expected[k] == v for k, v in left.items())
