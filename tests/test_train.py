"Training that repeats bit for bit, survives accidents and leaves a folder that loads"
import hashlib, json, math, subprocess, sys, warnings

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from madd.core import UserError, seed_everything
from madd.data import dataloaders
from madd.model import MADD, PlainDetector, load
from madd.train import madd_learner, train

SIZE = 64


def make_crops(root, people=8, frames=3):
    "Random faces: the fakes of a person carry a checkered patch"
    rng, rows = np.random.default_rng(0), []
    (root/'crops').mkdir(parents=True)
    for p in range(people):
        face = cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for label, method in ((0, 'original'), (1, 'Deepfakes')):
            for f in range(frames):
                image = face.astype(int) + rng.integers(-4, 5, face.shape)
                if label: image[20:44, 20:44] += 40*(np.indices((24, 24)).sum(0) % 2*2 - 1)[..., None]
                name = f'crops/{method}_{p}_{f}.png'
                cv2.imwrite(str(root/name), image.clip(0, 255).astype(np.uint8))
                rows.append(dict(label=label, dataset='toy', method=method, compression='c23', video=f'toy/{method}/c23/{p}', source='', target=str(p), frame=f,
                                 split='train' if p < 5 else 'val' if p < 7 else 'test', margin=.3, size=SIZE, crop=name, mask_crop='', reason='', path='x', mask=''))
    return pd.DataFrame(rows)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('toy')
    return make_crops(root), root


def loaders(data, **kw): return dataloaders(*data, **{'size': SIZE, 'bs': 6, 'device': 'cpu'} | kw)


def small(kind=MADD, seed=0, **kw):
    seed_everything(seed)
    return kind('tf_efficientnet_lite0', pretrained=False, **kw)


def fingerprint(model): return hashlib.sha256(b''.join(v.contiguous().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


RUN = '''
import sys; sys.path[:0] = {path!r}
from pathlib import Path
import torch; torch.set_num_threads(1)
from test_train import *
root = Path({root!r})
for kind in (MADD, PlainDetector):
    net = small(kind)
    train(loaders((pd.read_pickle(root/'crops.pkl'), root)), net, 2, seed=int(sys.argv[1]))
    print(fingerprint(net))
'''


def test_two_processes_give_the_same_weights_bit_for_bit(data):
    crops, root = data
    crops.to_pickle(root/'crops.pkl')
    code = RUN.format(path=[p for p in (__file__.rsplit('/', 1)[0], *sys.path) if p], root=str(root))
    runs = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, seed], stdout=subprocess.PIPE, text=True) for seed in ('0', '0', '1')]
    try: same, again, other = [r.communicate(timeout=600)[0].split() for r in runs]
    finally: [r.kill() for r in runs]
    assert len(same) == 2 and same == again and not set(same) & set(other)


def test_the_same_loaders_can_be_used_twice(data):
    dls, prints = loaders(data, augment='modern'), []
    for _ in range(2):
        net = small()
        train(dls, net, 1, seed=3)
        prints.append(fingerprint(net))
    assert prints[0] == prints[1]


@pytest.mark.parametrize('kind, schedule', [(MADD, 'one-cycle'), (PlainDetector, 'constant')])
def test_the_folder_loads_and_says_how_to_use_it(data, tmp_path, kind, schedule):
    net = small(kind)
    learn, history = train(loaders(data), net, 2, out=tmp_path/'run', schedule=schedule)
    again = load(tmp_path/'run')
    assert fingerprint(again) == fingerprint(net)
    assert (again.notes['size'], again.notes['margin'], again.notes['trained_on']['method']) == (SIZE, .3, ['Deepfakes', 'original'])
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['config.json', 'curves.png', 'history.csv', 'model.safetensors', 'train.json']
    assert len(pd.read_csv(tmp_path/'run/history.csv')) == 2
    facts = json.loads((tmp_path/'run/train.json').read_text())
    assert facts['best_epoch'] == learn.keep_best.best_epoch + 1 and facts['schedule'] == schedule and facts['ril'] == (kind is MADD)


def test_one_map_and_switches(data):
    for kw in (dict(), dict(ril=False), dict(agda=False), dict(ril=False, agda=False)):
        learn, history = train(loaders(data), small(n_maps=1), 1, **kw)
        assert ('ril' in history) == kw.get('ril', True) and ('agda' in history) == kw.get('agda', True)
        assert np.isfinite(history.drop(columns='auc').values).all()


def test_additive_margin_loss_trains_in_place_of_ril(data):
    learn, history = train(loaders(data), small(loss='ams', loss_settings={}), 1)
    before = [p.clone() for p in learn.model.ril.parameters()]
    learn.fit(1, lr=1e-2)
    assert before and any(not torch.equal(a, b) for a, b in zip(before, learn.model.ril.parameters()))


def test_a_reused_learner_starts_afresh(data):
    learn, history = train(loaders(data), small(), 3)
    start = learn.model.ril.alpha.item()
    first_alpha = .05*.9**(learn.keep_best.best_epoch + 1)
    assert math.isclose(start, first_alpha, rel_tol=1e-5)          # the state of the best epoch, centres and alpha included
    learn.validate(); learn.get_preds()
    assert len(learn.history.table) == 3 and learn.keep_best.best_epoch is not None
    learn.fit(1)
    assert len(learn.history.table) == 1 and math.isclose(learn.model.ril.alpha.item(), .045, rel_tol=1e-5)


class At(Callback):
    "Does something in a given epoch and step of training"
    order = -8
    def __init__(self, epoch, step, do): self.when, self.do = (epoch, step), do
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.when: self.do(self)


def raise_(e): raise e


def finite(net): return all(v.isfinite().all() for v in net.state_dict().values())


def test_a_broken_picture_stops_the_fit_and_keeps_the_last_good_weights(data, tmp_path):
    def spoil(cb): cb.x[0, 0, 0, 0] = math.nan
    for kind in (MADD, PlainDetector):
        net = small(kind)
        with pytest.raises(UserError, match=r'epoch 2, step 2; the last good weights are back') as e: train(loaders(data), net, 3, out=tmp_path/kind.__name__, cbs=[At(1, 1, spoil)])
        assert 'Exception occured' not in str(e.value) and '\n' not in str(e.value)
        assert finite(net) and fingerprint(load(tmp_path/kind.__name__)) == fingerprint(net)


def test_an_absurd_learning_rate_is_a_sentence(data):
    net = small()
    before = fingerprint(net)
    with pytest.raises(UserError, match='learning rate'): train(loaders(data), net, 1, lr=1e30, schedule='constant')
    assert fingerprint(net) == before


def test_control_c_leaves_the_best_epoch(data, tmp_path):
    net = small()
    with pytest.raises(KeyboardInterrupt): train(loaders(data), net, 5, out=tmp_path/'run', cbs=[At(2, 0, lambda cb: raise_(KeyboardInterrupt()))])
    assert len(pd.read_csv(tmp_path/'run/history.csv')) == 2 and fingerprint(load(tmp_path/'run')) == fingerprint(net)


def test_a_validation_set_of_one_class_is_warned_about(data):
    crops, root = data
    only = crops[(crops.split != 'val') | (crops.label == 0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn, history = train(loaders((only, root)), small(PlainDetector), 2)
    assert any('one class only' in str(w.message) for w in caught)
    assert learn.keep_best.best_epoch == history.valid_loss.argmin()


def test_the_batch_norm_statistics_move_once_per_step(data):
    net = small()
    learn, history = train(loaders(data), net, 1)
    counts = {int(v) for k, v in net.state_dict().items() if k.endswith('num_batches_tracked')}
    assert counts == {len(learn.dls.train)} and int(learn.model.ril.steps) == len(learn.dls.train)


def test_lr_find_leaves_no_trace(data, tmp_path):
    from fastai.callback import schedule  # noqa: adds lr_find to Learner
    learn = madd_learner(loaders(data), small(), path=tmp_path/'run')
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.lr_find(num_it=6, show_plot=False)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert not hasattr(learn.keep_best, 'best') and not (tmp_path/'run/history.csv').exists()
