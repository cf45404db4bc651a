"Runs that are killed, starved of disk or spoilt by a NaN, and go on as if nothing had happened"
import json, math, os, resource, signal, subprocess, sys, time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from test_train import At as AtTrain
from test_train import fingerprint, make_crops, raise_

from madd.core import UserError
from madd.model import MADD, load
from madd.runs import checkpoints, make_config, read_config, read_state, run, to_yaml
from madd.train import train

SMALL = dict(backbone='tf_efficientnet_lite0', pretrained=False, batch_size=6, epochs=2, save_steps=2, save_seconds=0., ema=.5)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('toy')
    return make_crops(root), root


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "An undisturbed run, to compare with"
    torch.set_num_threads(1)
    return run(make_config(SMALL), data, tmp_path_factory.mktemp('whole')/'run', device='cpu')


class At(AtTrain):
    order = 80
    def __init__(self, epoch, step, do, event='after_batch'): super().__init__(epoch, step, do, event)


def alike(a, b):
    "The same best and last weights on disk, the same history"
    assert fingerprint(load(a)) == fingerprint(load(b)) and fingerprint(load(a/'last')) == fingerprint(load(b/'last'))
    for name in ('history.csv', 'steps.csv'):
        x, y = (pd.read_csv(d/name).drop(columns='seconds', errors='ignore') for d in (a, b))
        pd.testing.assert_frame_equal(x, y, check_exact=True)
    return True


KILLED = '''
import os, signal, sys; sys.path[:0] = {path!r}
from test_resume import *
torch.set_num_threads(1)
epoch, step, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
data = pd.read_pickle({root!r} + '/crops.pkl'), {root!r}
kill = At(epoch, step, lambda cb: os.kill(os.getpid(), signal.SIGKILL), sys.argv[4])
print(run(make_config(SMALL), data, out, device='cpu', cbs=[kill]).learner.train_iter)
'''


def test_killed_twice_in_the_middle_of_epochs_it_ends_with_the_same_bits(data, whole, tmp_path):
    crops, root = data
    crops.to_pickle(root/'crops.pkl')
    code = KILLED.format(path=[os.path.dirname(__file__), *[p for p in sys.path if p]], root=str(root))
    child = lambda *when: subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, when[:2]), str(tmp_path/'run'), when[2]], capture_output=True, text=True, timeout=300)
    first = child(0, 3, 'after_loss')
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert [p.name for p in checkpoints(tmp_path/'run/checkpoints')] == ['00000-0000002']
    second = child(1, 2, 'after_backward')
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert [p.name for p in checkpoints(tmp_path/'run/checkpoints')] == ['00001-0000000', '00001-0000002']
    last = child(9, 9, 'after_batch')
    assert last.returncode == 0, last.stderr
    assert alike(whole.folder, tmp_path/'run') and not (tmp_path/'run/checkpoints').exists()


def steps_of(whole): return len(whole.learner.dls.train)


def test_the_runner_and_train_give_the_same_numbers(data, tmp_path):
    from madd.core import seed_everything
    from madd.data import dataloaders
    config = make_config(dict(SMALL, ema=0., epochs=1))
    a = run(config, data, tmp_path/'run', device='cpu')
    seed_everything(0)
    dls = dataloaders(*data, size=None, bs=6, device='cpu')
    net = MADD('tf_efficientnet_lite0', pretrained=False)
    learn, history = train(dls, net, 1)
    assert fingerprint(net) == fingerprint(a.learner.model.net)


@pytest.mark.parametrize('when', ['last step of an epoch', 'while validating', 'after everything'])
def test_killed_at_awkward_moments(data, whole, tmp_path, when):
    n = steps_of(whole)
    class Validating(Callback):
        order = 80
        def after_batch(self):
            if not self.training and self.epoch == 1: raise SystemExit
    class AtTheEnd(Callback):
        order = 80
        def after_fit(self): raise SystemExit
    stop = {'last step of an epoch': At(0, n - 1, lambda cb: raise_(SystemExit())), 'while validating': Validating(), 'after everything': AtTheEnd()}[when]
    with pytest.raises(SystemExit): run(make_config(SMALL), data, tmp_path/'run', device='cpu', cbs=[stop])
    assert not (tmp_path/'run/train.json').exists()
    run(make_config(SMALL), data, tmp_path/'run', device='cpu')
    assert alike(whole.folder, tmp_path/'run')


def test_a_full_disk_leaves_the_last_checkpoints_and_the_run_goes_on(data, whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = At(1, 0, lambda cb: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard)))
    try:
        with pytest.raises(Exception) as e: run(make_config(SMALL), data, tmp_path/'run', device='cpu', cbs=[fill])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 'large' in str(e.value).lower() or '27' in str(e.value)
    names = [p.name for p in (tmp_path/'run/checkpoints').iterdir()]
    assert sorted(names) == ['00000-0000004', '00001-0000000'] or len(names) == 2, names
    assert read_state(tmp_path/'run/checkpoints')['epoch'] == 1
    run(make_config(SMALL), data, tmp_path/'run', device='cpu')
    assert alike(whole.folder, tmp_path/'run')


def test_a_nan_is_never_checkpointed_and_a_lower_rate_goes_on(data, whole, tmp_path):
    spoil = lambda cb: setattr(cb.learn, 'loss_grad', cb.learn.loss_grad*math.nan)
    class Spoil(At): order = 15
    for every in (1, 1000):
        out = tmp_path/f'run{every}'
        with pytest.raises(UserError, match='epoch 2'):
            class Late(Callback):
                def before_fit(self): self.learn.nan_guard.every = every
            run(make_config(SMALL), data, out, device='cpu', cbs=[Spoil(1, 0, spoil, 'after_loss'), Late()])
        state = read_state(out/'checkpoints')
        assert all(v.isfinite().all() for v in state['model'].values()) and state['epoch'] == 1
        assert all(v.isfinite().all() for v in load(out/'last').state_dict().values())
    run(make_config(SMALL), data, tmp_path/'run1', device='cpu')
    assert alike(whole.folder, tmp_path/'run1')
    run(make_config(SMALL | dict(lr=1e-4)), data, tmp_path/'run1000', device='cpu')       # the same run, with a lower rate from here on
    assert read_config(tmp_path/'run1000/config.yaml').lr == 1e-4


def test_scaler_and_accumulation_are_continued(data, tmp_path):
    config = make_config(SMALL | dict(model='PlainDetector', precision='fp16', accumulate=2, save_steps=1, ema=0., epochs=1, schedule='released'))
    a = run(config, data, tmp_path/'a', device='cpu')
    with pytest.raises(SystemExit): run(config, data, tmp_path/'b', device='cpu', cbs=[At(0, 2, lambda cb: raise_(SystemExit()))])
    assert checkpoints(tmp_path/'b/checkpoints')[-1].name == '00000-0000002'              # never between the batches of one step
    assert read_state(tmp_path/'b/checkpoints')['scaler']['scale'] > 0
    run(config, data, tmp_path/'b', device='cpu')
    assert alike(tmp_path/'a', tmp_path/'b')


def test_a_finished_run_is_left_alone_and_another_one_refused(data, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.rglob('*') if p.name != 'config.yaml'}
    again = run(make_config(SMALL), data, whole.folder, device='cpu')
    assert again.learner is None and before == {p: p.stat().st_mtime_ns for p in whole.folder.rglob('*') if p.name != 'config.yaml'}
    with pytest.raises(UserError, match='n_maps was 4 and is now 2'): run(make_config(SMALL | dict(n_maps=2)), data, whole.folder, device='cpu')


def test_the_folder_of_a_run_says_everything(whole):
    names = {p.name for p in whole.folder.iterdir()}
    assert names == {'config.yaml', 'environment.json', 'config.json', 'model.safetensors', 'last', 'history.csv', 'steps.csv', 'curves.png', 'log.txt', 'train.json'}
    facts = json.loads((whole.folder/'environment.json').read_text())
    assert {'git', 'torch', 'device', 'python', 'processes'} <= set(facts)
    assert read_config(whole.folder/'config.yaml') == make_config(SMALL) and 'seed: 0' in to_yaml(make_config(SMALL))


def test_hq_to_lq_and_a_backbone_stage(data, whole, tmp_path):
    class First(Callback):
        def before_fit(self): self.seen = {k: v.clone() for k, v in getattr(self.learn.model, 'net', self.learn.model).state_dict().items()}
    first = First()
    lq = run(make_config(SMALL | dict(init=str(whole.folder), epochs=1)), data, tmp_path/'lq', device='cpu', cbs=[first])
    assert all(torch.equal(v, first.seen[k]) for k, v in load(whole.folder).state_dict().items())
    with pytest.raises(UserError, match='n_maps is 4 there and 3 here'): run(make_config(SMALL | dict(init=str(whole.folder), n_maps=3)), data, tmp_path/'no', device='cpu')
    staged = make_config(SMALL | dict(pretrain_epochs=1, epochs=1, ema=0.))
    run(staged, data, tmp_path/'staged', device='cpu', cbs=[first])
    assert all(torch.equal(v, first.seen[k]) for k, v in load(tmp_path/'staged/pretrain').state_dict().items() if k.startswith('backbone'))
    rest = run(replace(staged, freeze=True), data, tmp_path/'rest', device='cpu')          # ... and there it rests, weights and statistics
    assert all(torch.equal(v, rest.learner.model.net.state_dict()[k]) for k, v in load(tmp_path/'rest/pretrain').state_dict().items() if k.startswith('backbone'))
    assert not torch.equal(rest.learner.model.net.attention.conv.weight, load(tmp_path/'staged').attention.conv.weight)    # what stands on it learnt otherwise
    with pytest.raises(UserError, match='here it would be random'): make_config(SMALL | dict(freeze=True))


def test_a_training_that_is_asked_where_goes_on_with_the_same_bits(tmp_path):
    asked = make_config(SMALL | dict(model='PlainDetector', where=1., size=64, forge=dict(faces='', people=4, val=2, test=2, pairs=9, val_pairs=4)))
    whole = run(asked, None, tmp_path/'whole', device='cpu')
    with pytest.raises(KeyboardInterrupt): run(asked, None, tmp_path/'run', device='cpu', cbs=[At(1, 0, lambda cb: raise_(KeyboardInterrupt()))])
    assert not (tmp_path/'run'/'train.json').exists()
    again = run(asked, None, tmp_path/'run', device='cpu')
    assert alike(whole.folder, again.folder) and again.history['where'].gt(0).all()
    again.learner.validate(0)   # with masks in the batches, and no question


def test_a_checkpoint_is_data_and_never_code(data, tmp_path):
    import pickle
    folder = tmp_path/'c'/'00000-0000001'
    folder.mkdir(parents=True)
    (folder/'state.json').write_bytes(pickle.dumps({'x': 1})); (folder/'state.safetensors').write_bytes(pickle.dumps({'x': 1}))
    with pytest.raises(UserError, match='can be read'): read_state(tmp_path/'c')
