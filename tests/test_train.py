"Training that repeats bit for bit, survives accidents and leaves a folder that loads"
import hashlib, json, math, subprocess, sys, warnings

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader

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
    learn, history = train(loaders(data), small(n_maps=1), 1)
    assert 'ril' not in history and 'agda' not in history          # table 5: a single map is trained with neither
    for kw in (dict(), dict(ril=False), dict(agda=False), dict(ril=False, agda=False)):
        learn, history = train(loaders(data), small(n_maps=2), 1, **kw)
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
    def __init__(self, epoch, step, do, event='before_batch'):
        self.when, self.do = (epoch, step), do
        setattr(self, event, self.once)
    def once(self):
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


@pytest.mark.parametrize('split, label', [('val', 0), ('val', 1), ('train', 0), ('train', 1)])
def test_a_class_missing_from_a_split_is_refused_before_anything_changes(data, split, label):
    crops, root = data
    only, net = crops[(crops.split != split) | (crops.label == label)], small(PlainDetector)
    before = fingerprint(net)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(UserError, match='both classes in every split'): train(loaders((only, root)), net, 2)
    assert fingerprint(net) == before


def plain_loaders(n=12, bs=4, valid=4, labels=(0, 1), spoil=lambda x: x, **kw):
    "Loaders that know nothing about crops"
    g = torch.Generator().manual_seed(0)
    items = [(spoil(torch.rand(3, SIZE, SIZE, generator=g)*2 - 1) if i == n - 1 else torch.rand(3, SIZE, SIZE, generator=g)*2 - 1, labels[i % len(labels)]) for i in range(n)]
    return DataLoaders(DataLoader(items, bs=bs, **kw), DataLoader(items[:valid], bs=4), device='cpu')


@pytest.mark.parametrize('kind', [MADD, PlainDetector])
@pytest.mark.parametrize('bad, says', [(dict(labels=(0, 2)), 'Labels must be 0'), (dict(labels=(0, -1)), 'Labels must be 0'), (dict(bs=1), 'too few for batch norm'),
                                       (dict(n=13), 'too few for batch norm'), (dict(n=1, drop_last=False), 'too few'), (dict(n=3, drop_last=True), 'no full training batch'), (dict(valid=0), 'no validation crops')])
def test_bad_input_is_one_sentence_before_any_weight_changes(kind, bad, says):
    net = small(kind)
    before = fingerprint(net)
    with pytest.raises(UserError, match=says) as e: train(plain_loaders(**bad), net, 1)
    assert fingerprint(net) == before and '\n' not in str(e.value)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_pixels_that_are_no_numbers_leave_the_weights_as_they_were(value):
    def spoil(x): x[1, 5, 5] = value; return x
    for kind in (MADD, PlainDetector):
        net = small(kind)
        before = fingerprint(net)
        with pytest.raises(UserError, match='NaN'): train(plain_loaders(spoil=spoil), net, 1)
        assert fingerprint(net) == before


def test_a_guard_that_looks_late_still_keeps_nan_out_of_every_file(data, tmp_path):
    def spoil(cb): cb.learn.loss_grad = cb.learn.loss_grad*math.nan
    class Late(At): order = 19
    net = small()
    learn = madd_learner(loaders(data), net, path=tmp_path/'run', cbs=[Late(1, 0, spoil, 'after_loss')])
    learn.nan_guard.every = 1000
    with pytest.raises(UserError, match='epoch 2'): learn.fit(3)
    assert finite(net) and fingerprint(load(tmp_path/'run')) == fingerprint(net) and len(learn.history.table) == 1


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_keeps_weights_and_centres_in_float32(data, precision):
    net = small()
    learn, history = train(loaders(data, bs=15), net, 1, precision=precision)
    assert {v.dtype for v in learn.model.state_dict().values()} <= {torch.float32, torch.int64} and np.isfinite(history.loss).all()


def test_compiled_and_plain_networks_train_alike(data):
    tables = [train(loaders(data), small(dropout=0.), 1, compile=c)[1].drop(columns='seconds') for c in (False, 'eager')]
    np.testing.assert_allclose(*(t.values for t in tables), rtol=1e-3)


def test_the_best_epoch_of_a_moving_average_is_the_average(data, tmp_path):
    net = small()
    learn, history = train(loaders(data), net, 2, ema=.5, out=tmp_path/'run')
    score = learn.validate()
    assert math.isclose(score[0], history.valid_loss[learn.keep_best.best_epoch], rel_tol=1e-5)
    assert fingerprint(load(tmp_path/'run')) == fingerprint(net)


def test_own_metrics_draw_what_they_measure(data, tmp_path):
    "Without an accuracy the fit ends as any other: curves are drawn, and the best epoch is in the model"
    from madd.train import AUC
    learn = madd_learner(loaders(data), small(), path=tmp_path, metrics=[AUC()]); learn.fit(1)
    assert (tmp_path/'curves.png').is_file() and learn.keep_best.best_epoch == 0


def test_the_released_recipe_trains_with_its_match_loss(data):
    net = small(recipe='released')
    learn, history = train(loaders(data), net, 1, schedule='released')
    assert learn.agda.match_weight == .1 and learn.ril.weight == .5 and np.isfinite(history.loss).all() and history.lr[0] == 1e-4
    totals = []
    for weight in (0., .1):
        learn = madd_learner(loaders(data), small(recipe='released'), cbs=[At(0, 1, lambda cb: raise_(KeyboardInterrupt()))])
        learn.agda.match_weight = weight
        class Total(Callback):
            order = 3
            def after_loss(self): totals.append(float(self.learn.loss_grad.detach()))
        torch.manual_seed(0)
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[Total()])
    assert 0 < totals[1] - totals[0] < .2      # 0.1 times a distance between unit vectors


def test_callbacks_add_columns_to_the_history(data, tmp_path):
    class Counted(Callback):
        def after_validate(self): self.row = {'seen': self.learn.train_iter}
    learn, history = train(loaders(data), small(PlainDetector), 2, out=tmp_path/'run', cbs=[Counted()])
    assert history.seen.tolist() == [len(learn.dls.train), 2*len(learn.dls.train)] and 'seen' in pd.read_csv(tmp_path/'run/history.csv')


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
