"""Does a network tell a forgery by the original beside it?

    python bench/twins.py --run 'twins, 10 epochs=runs/ten' --run 'strangers, 10 epochs=runs/strangers' [--pairs 300] [--out bench/results/twins.json]

In training, batch normalisation subtracts the mean of the batch and divides by its spread. Whoever is in the batch is therefore part of what the network sees of
everybody. If a batch holds a forgery and its original, the network can compare them, which nobody can who judges one file.

A run is the folder of a training on the endless forge in one stage, such as the `pretrain` of a training in two stages, finished or not. Its curves are read. Its last
network judges new pairs, of people it was trained on and of people kept for the end: `alone`, with the statistics it has kept, as for a user; and with those of the
batch, which holds 16 pairs (`with twins`), or the real faces of 16 pairs and the forgeries of 16 others (`with strangers`). All networks judge the same pairs, which are
as hard as they get; none is retouched, and none was seen in training."""
import argparse
from pathlib import Path

import numpy as np, pandas as pd, torch

from common import command, cpu, named, today
from madd.core import UserError, progress, reuse_memory, write_json
from madd.endless import FORGE_VERSION, everybody, forge_config, make_pair, split_people, strangers
from madd.evaluate import fake_probability
from madd.export import CropsIn, fingerprint
from madd.generalise import gain, mean_auc
from madd.model import load
from madd.runs import read_config

SEED, HALF = 97, 16   # of the pairs, which no training has; pairs in a batch


def new_pairs(pool, n, size, margin):
    "Pairs of everybody in turn, by dice of their own: crops (2n, S, S, 3), and a row for each"
    crops, rows = [], []
    for k in progress(range(n), desc='pairs'):
        i, rng = k % len(pool), np.random.default_rng([k, SEED])
        p = make_pair(pool.portraits[i], pool.look_alike(i, rng), rng, size, margin)
        crops += [p.real, p.fake]
        rows += [dict(target=pool.names[i], video=f'{k} {label}', label=label) for label in (0, 1)]
    return np.stack(crops), pd.DataFrame(rows)


def batches(n, company):
    "Items of every batch: 2k is a real face and 2k + 1 its forgery; whole batches only"
    n -= n % HALF
    return np.reshape(strangers(n, HALF) if company == 'with strangers' else range(2*n), (-1, 2*HALF))


def statistics(net, of_batch):
    "Let batch norm use the statistics of the batch, or those it has kept; the latter are not touched"
    for m in net.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.train(of_batch); m.momentum = 0.


@torch.inference_mode()
def judged(net, crops, rows, company):
    "The rows with the evidence of a network, given in this company"
    statistics(net, company != 'alone')
    prob = np.full(len(crops), np.nan)
    for b in batches(len(crops)//2, company): prob[b] = fake_probability(net(torch.from_numpy(crops[b]))).numpy()
    return rows.assign(prob=prob).dropna()


def summary(t, alone, first):
    "AUC; the difference to the same network alone, and to the first network in this company; cross-entropy"
    auc, right = mean_auc([t]), np.where(t.label, t.prob, 1 - t.prob)
    more = {what: gain([t], [other])._asdict() for what, other in (('to_alone', alone), ('to_first', first))}
    known = lambda d: {k: float(d[k]) if np.isfinite(d[k]) else None for k in ('value', 'lo', 'hi')}     # too few people have no interval
    return dict(auc=auc.value, **{k: known(auc._asdict())[k] for k in ('lo', 'hi')}, loss=float(-np.log(np.clip(right, 1e-7, 1)).mean()), **{what: known(d) for what, d in more.items()})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--run', action='append', type=named, required=True, help='name=folder; may be given several times'); p.add_argument('--pairs', type=int, default=300)
    p.add_argument('--out', type=Path, default=Path('bench/results/twins.json'))
    a = p.parse_args()
    torch.set_num_threads(1); reuse_memory()
    if a.pairs < 2*HALF: raise UserError(f'At least {2*HALF} pairs are needed, for two batches.')
    runs = {name: (Path(folder), read_config(Path(folder)/'config.yaml')) for name, folder in a.run}
    first = next(iter(runs.values()))[1]
    if any((c.size, c.forge, c.seed) != (first.size, first.forge, first.seed) for _, c in runs.values()): raise UserError('Size, seed and settings of the forge must be the same in all of these runs.')
    forge = forge_config(first.forge)
    pool = everybody(forge, first.seed)
    people = split_people(pool.names, 0, forge.val, forge.test)
    parts = {'known': people['train'][:forge.test], 'new': people['test']}     # as many of the one as of the other
    asked = {who: new_pairs(pool.part(names), a.pairs, first.size, forge.margin) for who, names in parts.items()}
    out, tables, first_said = [], [], {}
    for name, (folder, config) in runs.items():
        net, curves = CropsIn(load(folder/'last')), pd.read_csv(folder/'history.csv').rename(columns=dict(loss='train_loss'))
        rows = []
        for who in asked:
            said = {company: judged(net, *asked[who], company) for company in ('alone', 'with twins', 'with strangers')}
            of_first = first_said.setdefault(who, said)
            rows += [dict(people=who, company=company, **summary(t, said['alone'], of_first[company])) for company, t in said.items()]
        out.append(dict(run=name, fingerprint=fingerprint(folder/'last'), planned=config.epochs, curves=curves[['epoch', 'train_loss', 'valid_loss', 'auc', 'lr', 'seconds']].to_dict('list'), rows=rows))
        tables.append(pd.DataFrame(rows).assign(run=name).set_index(['run', 'people', 'company']))
    write_json(a.out, dict(date=today(), command=command(), hardware=cpu(), forge=FORGE_VERSION, settings=first.forge, size=first.size, people={who: len(n) for who, n in parts.items()}, pairs=a.pairs, batch=2*HALF,
                           data='new pairs of public-domain portraits by the endless forge, for everybody the same; one cut per face; intervals over people', runs=out))
    print(pd.concat(tables)[['auc', 'lo', 'hi', 'loss']].round(3).to_string())


if __name__ == '__main__':
    try: main()
    except UserError as e: raise SystemExit(str(e)) from None
