"""What does the second stage of a training add to the first?  python bench/second_stage.py [--seeds 1] [--work runs/second_stage] [--out bench/results/second_stage.json]

One backbone is trained as a plain detector (the first stage, asked where as well). Then several second stages begin with exactly this backbone: MADD with
everything learning, MADD while the backbone rests, MADD without its loss and its augmentation, the plain detector simply going on, and, when they are asked for
(--kinds), MADD with one of the two only, or with a tenth of the loss. All are judged on the clips of bench/generalise.py, of people nobody trained on, and compared with the first stage on the same people. What is finished is not repeated."""
import argparse, shutil, types
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch

from common import command, cpu, today
from generalise import SETTINGS, TEST, TINY, crops, prepare, rounded, score, slices_of, videos
from madd.core import UserError, read_json, reuse_memory, write_json
from madd.endless import FORGE_VERSION
from madd.evaluate import UNITS
from madd.generalise import gain, mean_auc
from madd.model import load
from madd.runs import over, read_config, run

FIRST, OUT = 'first stage', Path('bench/results/second_stage.json')
STAGE = dict(size=112, pretrain_epochs=8, pretrain_lr=7e-4, where=1., ema=.98, epochs=3, workers=0, save_seconds=120., forge=dict(pairs=1024, val_pairs=300, ramp=3))
KINDS = {'the backbone rests': dict(freeze=True, lr=1e-3), 'everything learns': dict(lr=1e-4), 'no RIL, no AGDA': dict(lr=1e-4, changes=dict(loss='none', augment='none')),
         'plain goes on': dict(lr=1e-4, model='PlainDetector', pretrain_epochs=0, where=0.)}
PARTS = {'only RIL': dict(lr=1e-4, changes=dict(augment='none')), 'only AGDA': dict(lr=1e-4, changes=dict(loss='none')), 'a tenth of RIL': dict(lr=1e-4, changes=dict(loss_weight=.1))}
EVERY = KINDS | PARTS


def configs(seed, o, stage):
    "The run of every kind; all are told to begin with the same first stage"
    base = read_config(training='forge', **over(o.stage, dict(seed=seed, forge=dict(faces=o.faces))))
    for kind in o.kinds:
        how = EVERY[kind]
        yield kind, replace(base, **how, **(dict(init=str(stage)) if kind == 'plain goes on' else {}))


def train(seed, o):
    "kind -> folder of a finished run; the first stage is trained once and copied"
    out, done = o.work/f'seed{seed}', {}
    folder = lambda kind: out/kind.replace(', ', '_').replace(' ', '_')
    stage = next((f.parent for f in sorted(out.glob('*/pretrain/train.json'))), folder(o.kinds[0])/'pretrain')   # also of an earlier call with other kinds
    for kind, config in configs(seed, o, stage):
        at = folder(kind)
        if config.pretrain_epochs and (stage/'train.json').exists() and not (at/'pretrain').exists(): shutil.copytree(stage, at/'pretrain')
        run(config, None, at, device='cpu')
        done[kind] = at
        if kind == o.kinds[0]: done = {FIRST: stage} | done
        print(f'{kind}: best validation AUC {read_json(at/"train.json")["valid_auc"]:.4f}', flush=True)
        yield dict(done)


def tables(tested):
    "AUC of every stage, and what it adds to the first, on the same people"
    rows, names = [], list(next(iter(tested.values())))
    some = {('madd', '', 0): {0: next(iter(tested.values()))[FIRST]}}   # the shape `slices_of` knows
    for where, crf in slices_of(some):
        for kind in names:
            mine, first = ([videos(t[k], 'all', where, crf) for t in tested.values() if k in t] for k in (kind, FIRST))
            a, g = mean_auc(mine), gain(mine, first[:len(mine)])
            rows.append(dict(kind=kind, dataset=where, compression=crf, auc=a.value, lo=a.lo, hi=a.hi, trainings=a.n) | ({} if kind == FIRST else dict(gain=g.value, gain_lo=g.lo, gain_hi=g.hi)))
    return rounded(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--faces', default='portraits'); p.add_argument('--seeds', type=int, default=1); p.add_argument('--tiny', action='store_true', help='a few minutes on built-in people (--faces ""), to see that it runs')
    p.add_argument('--first-seed', type=int, default=0); p.add_argument('--kinds', nargs='+', default=list(KINDS), choices=list(EVERY), help='second stages; the first of them is trained together with the first stage')
    p.add_argument('--work', type=Path, default=Path('runs/second_stage')); p.add_argument('--out', type=Path, default=OUT)
    o = p.parse_args()
    if o.kinds[0] == 'plain goes on': raise UserError('"plain goes on" has no first stage of its own: name another kind first.')
    if o.out == OUT and (o.kinds != list(KINDS) or o.first_seed): raise UserError(f'{OUT} holds the usual kinds from seed 0 on: give another --out for others.')
    torch.set_num_threads(1); reuse_memory()
    small = TINY['settings'] if o.tiny else {}
    o.stage = over(STAGE, small | (dict(pretrain_epochs=1) if o.tiny else {}))
    t = types.SimpleNamespace(faces=o.faces, work=o.work, settings=over(over(SETTINGS, dict(forge=dict(pairs=o.stage['forge']['pairs']))), small), test=TEST | (TINY['test'] if o.tiny else {}))
    facts, tested, curves = prepare(t), {}, {}
    crops(t, facts, o.stage['size'], t.settings['forge']['margin'])
    for seed in range(o.first_seed, o.first_seed + o.seeds):
        for done in train(seed, o):
            for kind, at in done.items():
                if not (at/'clips.parquet').exists(): score(load(at), t, facts, at)
            tested[seed] = {kind: UNITS['video'](pd.read_parquet(at/'clips.parquet')) for kind, at in done.items()}
            curves[seed] = {kind: pd.read_csv(at/'history.csv')[['auc', 'seconds']].round(4).to_dict('records') for kind, at in done.items()}
            rows = tables(tested)
            write_json(o.out, dict(date=today(), command=command(), hardware=cpu(), torch=torch.__version__, seeds=len(tested), first_seed=o.first_seed, forge=FORGE_VERSION, settings=o.stage, kinds={k: EVERY[k] for k in o.kinds},
                tested_on=', '.join(f'{len(v)} people ({k})' for k, v in facts['people'].items()), intervals='95 %, people drawn with replacement', valid={str(s): c for s, c in curves.items()}, rows=rows))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == '__main__':
    try: main()
    except UserError as e: raise SystemExit(str(e))
