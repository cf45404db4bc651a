"""bench/twins.py: what a network is told by who else is in its batch."""
import sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from madd.core import read_json
from madd.export import CropsIn
from madd.model import PlainDetector
from madd.runs import make_config, to_yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(ROOT/'bench'))
    import twins
    yield twins
    sys.path.remove(str(ROOT/'bench'))


def test_who_is_in_a_batch(bench):
    n, size = 50, 2*bench.HALF
    for company in ('alone', 'with twins', 'with strangers'):
        b = bench.batches(n, company)
        assert b.shape == (n//bench.HALF, size) and sorted(b.ravel()) == list(range(n//bench.HALF*size))
        assert (b % 2).sum(1).tolist() == [bench.HALF]*len(b)
        assert [len(set(row//2)) for row in b] == [size if company == 'with strangers' else bench.HALF]*len(b)


def test_only_company_makes_a_difference(bench):
    torch.manual_seed(0)
    net = CropsIn(PlainDetector('mobilenetv2_035', pretrained=False))
    crops, rows = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8), pd.DataFrame(dict(target=[f'{k//2}' for k in range(64)], video=range(64), label=[0, 1]*32))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = crops.copy(); other[1::2] = 255 - other[1::2]        # other forgeries, the same real faces
    say = lambda pictures, company: bench.judged(net, pictures, rows, company).prob.to_numpy()[::2]
    assert np.abs(say(crops, 'alone') - say(other, 'alone')).max() < 1e-6
    for company in ('with twins', 'with strangers'): assert np.abs(say(crops, company) - say(other, company)).max() > 1e-6
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if 'num_batches' not in k)     # looking changes nothing


def test_runs_that_differ_are_refused_and_equal_ones_are_compared(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'HALF', 2)
    for name, size in (('one', 64), ('two', 64), ('large', 96)):
        net = PlainDetector('mobilenetv2_035', pretrained=False); net.notes.update(size=size, margin=.05)
        (tmp_path/name).mkdir(); net.save(tmp_path/name/'last')
        (tmp_path/name/'config.yaml').write_text(to_yaml(make_config(dict(model='PlainDetector', backbone='mobilenetv2_035', size=size, forge=dict(faces='', people=4, val=2, test=3)))))
        pd.DataFrame(dict(epoch=[0], loss=[.7], valid_loss=[.7], auc=[.5], lr=[1e-3], seconds=[1.])).to_csv(tmp_path/name/'history.csv', index=False)
    words = lambda *runs: monkeypatch.setattr(sys, 'argv', ['twins.py', '--pairs', '6', '--out', str(tmp_path/'out.json'), *(w for r in runs for w in ('--run', f'{r}={tmp_path/r}'))])
    words('one', 'large')
    with pytest.raises(bench.UserError, match='must be the same'): bench.main()
    words('one', 'two'); bench.main()
    found = read_json(tmp_path/'out.json')
    assert [r['run'] for r in found['runs']] == ['one', 'two'] and len({r['fingerprint'] for r in found['runs']}) == 2 and found['people'] == dict(known=3, new=3)
    assert [(x['people'], x['company']) for x in found['runs'][0]['rows']] == [(p, c) for p in ('known', 'new') for c in ('alone', 'with twins', 'with strangers')]
    assert all(x['to_first']['value'] == 0 for x in found['runs'][0]['rows']) and 'strangers' in capsys.readouterr().out


def test_the_record_names_no_machine():
    path = ROOT/'bench/results/twins.json'
    record = read_json(path)
    assert not any(w in path.read_text() for w in ('/tmp', '/home/', '/work', '/root')) and {'date', 'command', 'hardware', 'data', 'forge', 'settings'} <= set(record)
    for r in record['runs']:
        assert len(r['rows']) == 6 and len(r['curves']['auc']) == len(r['curves']['train_loss']) <= r['planned']
        for x in r['rows']: assert x['lo'] <= x['auc'] <= x['hi'] and x['loss'] > 0
