"""What is honest about bench/shortcuts.py: an edit happens where it says, and a detector that sees nothing finds nothing."""
import sys
from pathlib import Path

import numpy as np, pandas as pd, pytest

from madd.core import read_json
from madd.forge import eye_distance, face_mask, portrait
from madd.sources import AstronautFaces

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT/'bench/results/shortcuts.json'


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(ROOT/'bench'))
    import shortcuts
    yield shortcuts
    sys.path.remove(str(ROOT/'bench'))


@pytest.fixture(scope='module')
def shot(): return portrait(AstronautFaces(n=1)[0][1])


def test_an_edit_happens_where_it_says(bench, shot):
    mask = face_mask(shot.landmarks, shot.image.shape, 'face')
    far = int(eye_distance(shot.landmarks)/2)
    inside = mask > .99
    outside = np.ones_like(inside); ys, xs = np.nonzero(mask > .01)
    outside[max(ys.min() - far, 0):ys.max() + far, max(xs.min() - far, 0):xs.max() + far] = False
    moved = {e: np.abs(bench.edited(shot, e, np.random.default_rng(0)).astype(int) - shot.image).mean(-1) for e in bench.EDITS}
    assert not moved['nothing'].any()
    for e, (_, where) in bench.EDITS.items():
        if e == 'nothing': continue
        assert (moved[e][inside].mean() > .3) == (where not in ('around', 'background')), e
        assert (moved[e][outside].mean() > .1) == (where not in ('face', 'skin')), e
    eyes, head = shot.landmarks[:2].round().astype(int), bench.person(shot.landmarks, shot.image.shape) == 1
    assert all(moved['skin smoothed'][y, x] <= 1 for x, y in eyes) and head.sum() > 1.5*inside.sum() and head[-1].sum() > head[shot.landmarks[3:, 1].mean().astype(int)].sum()
    assert moved['background softer'][head].mean() < .2 < moved['all but the face softer'][head & ~(mask > .01)].mean()
    assert bench.edited(shot, 'face darker', np.random.default_rng(0))[inside].mean() < shot.image[inside].mean() < bench.edited(shot, 'face lighter', np.random.default_rng(0))[inside].mean()


def test_who_is_called_and_who_is_told_apart(bench):
    people = [f'p{k}' for k in range(12)]
    blind = pd.DataFrame([dict(target=p, video=str(k), edit=e, prob=.1 + k/100) for e in ('nothing', 'face softer') for k, p in enumerate(people)])
    same, soft = bench.edit_rows(blind, .8)
    assert (same['edit'], soft['edit']) == ('nothing', 'face softer') and soft['auc'] == pytest.approx(.5) and soft['called'] == 0 and soft['pictures'] == 12
    sees = blind.assign(prob=np.where(blind.edit == 'nothing', .1, .9))
    assert [(r['called'], r['share'], pytest.approx(r['auc'])) for r in bench.edit_rows(sees, .8)] == [(0, 0, .5), (12, 1, 1.)]
    pairs = pd.DataFrame([dict(target=p, video=f'{k} {y}', label=y, method='Deepfakes', traces=t, prob=.9 if y and t == 'on the forgery' else .1) for t in ('around it', 'on the forgery') for k, p in enumerate(people) for y in (0, 1)])
    pairs['video'] = pairs.traces + pairs.video
    assert {r['traces']: (r['pairs'], pytest.approx(r['auc'])) for r in bench.trace_rows(pairs, pairs)} == {'both': (24, .75), 'around it': (12, .5), 'on the forgery': (12, 1.)}
    assert all(r['gain'] == r['gain_lo'] == r['gain_hi'] == 0 for r in bench.trace_rows(pairs, pairs))                                   # a model against itself
    blind = pairs.assign(prob=.1)
    assert {r['traces']: pytest.approx(r['gain']) for r in bench.trace_rows(pairs, blind)} == {'both': .25, 'around it': 0, 'on the forgery': .5}


def test_the_interval_of_a_share_is_over_people(bench):
    people = pd.Series(np.repeat(range(20), 5))
    own, mixed = people < 5, pd.Series(np.tile([1, 0, 0, 0], 25)).astype(bool)      # a quarter either way: five people always, or everybody sometimes
    wide, narrow = bench.share(own, people), bench.share(mixed, people)
    assert wide['share'] == narrow['share'] == .25 and wide['called'] == narrow['called'] == 25
    assert wide['share_lo'] < .12 and wide['share_hi'] > .38 and narrow['share_hi'] - narrow['share_lo'] < .1 and narrow['share_lo'] < .25 < narrow['share_hi']


def test_models_are_named_on_the_command_line(bench):
    assert [bench.named(w) for w in ('madd-lite', 'runs/mine', 'old=runs/old', 'a=b=c')] == [('madd-lite', 'madd-lite'), ('mine', 'runs/mine'), ('old', 'runs/old'), ('a=b', 'c')]


def test_versions_are_compared_only_when_nothing_else_differs(bench, tmp_path, monkeypatch):
    import shutil, versions
    from madd.core import UserError, write_json
    from madd.model import model_folder
    def call(*words): monkeypatch.setattr(sys, 'argv', ['bench/versions.py', *words, '--out', str(tmp_path/'out.json')]); versions.main()
    with pytest.raises(UserError, match='the same version'): call('a=madd-lite', 'b=madd-lite')
    shutil.copytree(model_folder('madd-lite'), tmp_path/'next')
    r = read_json(tmp_path/'next'/'results.json'); r['about']['forge'] = 99; write_json(tmp_path/'next'/'results.json', r)
    call('a=madd-lite', f'b={tmp_path/"next"}')
    a, b = read_json(tmp_path/'out.json')['models']
    assert (a['name'], b['name'], b['forge']) == ('a', 'b', 99) and a['rows'] == b['rows'] and len(a['rows']) == 2*2*6
    call('c=madd-lite', '--add')                                                        # the folder of version 99 need not be there any more
    assert [(m['name'], m['forge']) for m in read_json(tmp_path/'out.json')['models']] == [('c', a['forge']), ('b', 99)]
    (tmp_path/'next'/'results.json').write_text((tmp_path/'next'/'results.json').read_text().replace(b['fingerprint'], 'f'*len(b['fingerprint'])))
    with pytest.raises(UserError, match='none of these models'): (write_json(tmp_path/'out.json', dict(models=[a])), call(f'b={tmp_path/"next"}', '--add'))
    yaml = tmp_path/'next'/'config.yaml'; yaml.write_text(yaml.read_text().replace('pairs: 2000', 'pairs: 1000'))
    with pytest.raises(UserError, match='different settings'): call('a=madd-lite', f'b={tmp_path/"next"}')


@pytest.mark.skipif(not RECORD.exists(), reason='not recorded yet')
def test_the_record_holds_every_question_of_every_model(bench):
    from madd.export import fingerprint
    record = read_json(RECORD)
    assert not any(w in RECORD.read_text() for w in ('/tmp', '/home/', '/work')) and {'date', 'command', 'hardware', 'people', 'data', 'lost'} <= set(record)
    assert fingerprint('madd-lite') in {m['fingerprint'] for m in record['models']}, 'measure madd-lite again: the record holds the command'
    for m in record['models']:
        assert [r['edit'] for r in m['edits']] == list(bench.EDITS) and {r['traces'] for r in m['forgeries']} == {'both', 'around it', 'on the forgery'}
        for r in [*m['edits'], *m['forgeries']]: assert r['auc_lo'] <= r['auc'] <= r['auc_hi']
        for r in m['edits']: assert r['share_lo'] <= r['share'] <= r['share_hi']
        assert sum(r['pairs'] for r in m['forgeries'] if r['traces'] != 'both') == next(r['pairs'] for r in m['forgeries'] if r['traces'] == 'both')


def test_the_training_that_retouched_is_on_record_and_differs_in_nothing_else():
    from madd.model import model_folder
    path = ROOT/'bench/results/retouched.json'
    assert not any(w in path.read_text() for w in ('/tmp', '/home/', '/work', '/root'))
    calm, ours = read_json(path)['about'], read_json(model_folder('madd-lite')/'results.json')['about']
    assert calm['fingerprints']['madd-lite'] in {m['fingerprint'] for m in read_json(RECORD)['models']}
    assert [len(calm['history'][s]) for s in ('first stage', 'second stage')] == [len(ours['history'][s]) for s in ('first stage', 'second stage')] == [20, 3]
    for k in ('forge', 'people', 'hardware', 'threads'): assert calm[k] == ours[k], k
    for k in ('epochs', 'lr', 'wd', 'batch_size', 'schedule', 'seed', 'ril', 'agda', 'steps'): assert calm['training'][k] == ours['training'][k], k


@pytest.mark.parametrize('name', ['shortcuts', 'shortcuts_versions', 'shortcuts_turned', 'retouch', 'forge_versions'])
def test_records_name_no_machine_and_give_every_number_its_interval(name):
    path = ROOT/f'bench/results/{name}.json'
    record = read_json(path)
    assert not any(w in path.read_text() for w in ('/tmp', '/home/', '/work', '/root')) and {'date', 'command', 'data', 'models'} <= set(record)
    assert len({m['fingerprint'] for m in record['models']}) == len(record['models']) > 1
    for r in record.get('gains', []): assert r['lo'] <= r['value'] <= r['hi'] and r['model'] != r['against']
    if name in ('retouch', 'forge_versions'):
        slices = {(r['model'], r['dataset'], r['compression']) for r in record['gains'] if r['method'] == 'the known five'}
        assert len(slices) == 6*len({r['model'] for r in record['gains']}) and len({r['dataset'] for r in record['gains']}) == 3
