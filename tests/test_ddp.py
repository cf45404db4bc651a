"Two processes on the CPU train exactly what one process trains: `torchrun`, gloo, an uneven last batch"
import json, os, socket, subprocess, sys

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file, save_file
from test_train import make_crops

HERE = os.path.dirname(os.path.abspath(__file__))
TRAINED = '''
import os, sys, warnings; warnings.filterwarnings('ignore'); sys.path[:0] = {path!r}
from test_ddp import *
for name, settings in {runs!r}.items(): go({root!r}, sys.argv[1] + name, settings)
'''


ASKED = dict(model='PlainDetector', where=1., size=64, batch_size=6, forge=dict(faces='', people=4, val=2, test=2, pairs=6, val_pairs=3))   # endless pairs and their masks

REST = dict(pretrain_epochs=1, epochs=1, freeze=True)

SUMS = dict(batch_size=3, accumulate=2, epochs=1)   # two batches per step, and in every batch one process has twice the share of the other


class PickMost:
    "AGDA without dice: every picture is degraded where its strongest map looks"
    def __init__(self):
        from madd.agda import AGDA
        self.agda = AGDA(sigma=2.)
    def __call__(self, x, attns): return self.agda(x, attns, attns.sum((2, 3)).argmax(1))


class Gradients(Callback):
    "Keeps the gradients of every step, and the number of crops this process has seen"
    order, run_valid = 90, False
    def before_fit(self): self.steps, self.sizes = [], []
    def before_step(self):
        self.steps.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters() if p.grad is not None]).clone())
        self.sizes.append(len(self.learn.yb[0]))


def go(root, out, settings):
    "Two epochs with plain SGD, without dropout; what came out goes into a file"
    from pathlib import Path

    from fastai.torch_core import get_model, num_distrib, rank_distrib

    import madd.data
    from madd import runs
    from madd.train import Schedule
    torch.set_num_threads(1)
    torch.Tensor.float = torch.Tensor.double       # everything in double precision, so that only real differences are seen
    real = madd.data.dataloaders

    def all_crops(*args, **kwargs):     # also those of the incomplete last batch
        dls = real(*args, **kwargs)
        dls.train.drop_last = False
        return dls
    runs.dataloaders = all_crops
    runs.SCHEDULES['sgd'] = Schedule(torch.optim.SGD, 1e-3, 0., lambda epoch: 1.)
    config = runs.make_config(dict(backbone='tf_efficientnet_lite0', pretrained=False, batch_size=17, epochs=2, schedule='sgd',
                                   changes=dict(dropout=0.)) | settings)
    spy = Gradients()
    data = pd.read_pickle(f'{root}/crops.pkl'), Path(root)
    def learner_of(config, dls, model, out, cbs):
        model.double()
        learn = first(config, dls, model, out, cbs)
        if config.model == 'MADD': learn.model.ril.double(); learn.agda.augment = PickMost()
        else: learn.model.double(); getattr(learn.model, 'net', learn.model).head.dropout.p = 0.     # also the convolutions that answer where; a control's dropout is no setting
        return learn
    first, runs.learner_of = runs.learner_of, learner_of
    class Double(Callback):
        order = -8
        def before_batch(self): self.learn.xb = (self.xb[0].double(),)
    done = runs.run(config, data, out, device='cpu', cbs=[Double(), spy])
    state = {k: v.clone().contiguous() for k, v in done.learner.model.state_dict().items()}
    name = f'{out}.{rank_distrib()}.safetensors'
    save_file({**{f'state/{k}': v for k, v in state.items()}, **{f'grad/{i}': g.contiguous() for i, g in enumerate(spy.steps)}}, name)
    done.history.drop(columns='seconds').to_csv(f'{out}.{rank_distrib()}.csv', index=False)
    with open(f'{out}.{rank_distrib()}.json', 'w') as f: json.dump(dict(sizes=spy.sizes, world=num_distrib()), f)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(code, out, processes):
    env = {k: v for k, v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')} | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
    script = out.parent/f'{out.name}.py'
    script.write_text(code)
    many = ['-m', 'torch.distributed.run', '--nproc-per-node', str(processes), '--master-addr', '127.0.0.1', '--master-port', str(free_port())]
    return subprocess.run([sys.executable, '-W', 'ignore', *(many if processes > 1 else []), str(script), str(out)], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('toy')
    make_crops(root, people=7, frames=2).iloc[:-1].to_pickle(root/'crops.pkl')     # 20 crops to train on, 7 to validate
    return root


def trained(root, folder, processes, **runs):
    "{name: [(tensors, history, facts) of every process]}; the runs are trained one after the other by the same processes"
    code, out = TRAINED.format(path=[HERE, *[p for p in sys.path if p]], root=str(root), runs=runs), folder/f'with{processes}_'
    done = start(code, out, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    read = lambda f: (load_file(f'{f}.safetensors'), pd.read_csv(f'{f}.csv'), json.loads(open(f'{f}.json').read()))
    return {name: [read(f'{out}{name}.{r}') for r in range(processes)] for name in runs}


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def singles(root, folder): return trained(root, folder, 1, whole={}, asked=ASKED, rest=REST, sums=SUMS)


@pytest.fixture(scope='module')
def alone(singles): return singles['whole'][0]


@pytest.fixture(scope='module')
def shared(root, folder): return trained(root, folder, 2, whole={}, apart=dict(sync_bn=False, epochs=1), asked=ASKED, rest=REST, sums=SUMS)


def largest(a, b, part):
    keys = [k for k in a if k.startswith(part)]
    assert keys and set(keys) == {k for k in b if k.startswith(part)}
    return max((a[k].double() - b[k].double()).abs().max().item() for k in keys)


def test_two_processes_equal_one(alone, shared, folder):
    one, table, facts = alone
    (two, table2, facts2), (other, table3, facts3) = shared['whole']
    assert facts['sizes'] == [17, 3]*2 and facts2['sizes'] == [9, 2]*2 and facts3['sizes'] == [8, 1]*2      # every batch is uneven, the last one most
    assert largest(one, two, 'grad') < 1e-5 and largest(one, two, 'state') < 1e-5 and largest(two, other, 'state') == 0
    assert largest(one, two, 'state/ril.centers') < 1e-5 and one['state/ril.centers'].abs().max() > 0
    np.testing.assert_allclose(table.values, table2.values, atol=1e-5)                          # losses, accuracy, AUC
    pd.testing.assert_frame_equal(table2, table3)
    out = folder/'with2_whole'
    assert json.loads((out/'environment.json').read_text())['processes'] == 2 and not list(out.rglob('.*'))
    assert len((out/'log.txt').read_text().splitlines()) == 4                                   # only one process writes: start, two epochs, end


def test_the_comparison_notices_batch_norm_that_is_not_shared(alone, shared):
    assert largest(alone[0], shared['apart'][0][0], 'grad/0') > 1e-3


def test_two_processes_are_asked_where_and_equal_one(singles, shared):
    one, table, facts = singles['asked'][0]
    (two, table2, facts2), (other, _, facts3) = shared['asked']
    assert facts['sizes'] == [6, 6]*2 and facts2['sizes'] == facts3['sizes'] == [3, 3]*2
    assert largest(one, two, 'grad') < 1e-5 and largest(one, two, 'state') < 1e-5 and largest(two, other, 'state') == 0
    assert largest(one, {k: torch.zeros_like(v) for k, v in one.items()}, 'state/ask') > 0 and table['where'].gt(0).all()
    np.testing.assert_allclose(table.values, table2.values, atol=1e-5)


def test_two_processes_whose_backbone_rests_equal_one(singles, shared, folder):
    (one, table, _), (two, table2, _) = singles['rest'][0], shared['rest'][0]
    assert largest(one, two, 'grad') < 1e-5 and largest(one, two, 'state') < 1e-5
    stage = load_file(str(folder/'with2_rest/pretrain/model.safetensors'))
    assert all(torch.equal(v.float(), two[f'state/net.{k}'].float()) for k, v in stage.items() if k.startswith('backbone'))     # a model is read in single precision
    np.testing.assert_allclose(table.values, table2.values, atol=1e-5)


def test_two_processes_that_accumulate_equal_one(singles, shared):
    (one, table, facts), (two, table2, facts2), (other, _, facts3) = singles['sums'][0], *shared['sums']
    assert len(facts['sizes']) == len(facts2['sizes']) == len(facts3['sizes']) == 4 and facts['sizes'] == [3, 3, 3, 2]     # 20 crops in steps of 6, and what is left
    assert largest(one, two, 'grad') < 1e-5 and largest(one, two, 'state') < 1e-5 and largest(two, other, 'state') == 0
    np.testing.assert_allclose(table.values, table2.values, atol=1e-5)
