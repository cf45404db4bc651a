"""Do detectors find what a network draws, when they were trained on formulas?

    python bench/neural.py                        trains the examiner on all portraits and all strangers, forges with it, and judges madd-lite
    python bench/neural.py --model runs/mine plain=runs/plain   ... or models of your own

The examiner is a network that draws faces (`madd.neural`); no detector of this library is trained on what it draws. It does see the people the detectors are tested on,
as every face swap has seen its victims; the detectors do not. With the same command a finished network and finished clips are kept (a training that was stopped starts anew); all of it stays in --work and is never shipped."""
import argparse, sys, time
from pathlib import Path

import cv2, numpy as np, pandas as pd, torch
from torch.utils.data import ConcatDataset

from common import apart, command, cpu, gains, named, sized, today
from madd.core import UserError, label_forged, read_json, reuse_memory, write_json
from madd.endless import Pool, split_people
from madd.evaluate import metrics_table, score_crops
from madd.export import fingerprint
from madd.forge_set import clip_path, forge_set
from madd.generalise import Only, test_clips
from madd.media import read_frames, save_image
from madd.model import model_folder
from madd.neural import NEURAL, drawing_loss, load_swap, neural_clips, save_swap, squares, train_swap
from madd.sources import AstronautFaces, face_source

PEOPLE, CRFS = (40, 60, 40), [23, 40]   # who validates, who is kept for the end, built-in identities; of the clips: as in bench/weights.py
STRANGERS = 'forge of built-in identities'


def examiner(o, faces):
    "The network, trained once, and what is known about its training"
    folder, asked = o.work/'swap', dict(side=o.side, steps=o.steps, seed=o.seed)
    if (folder/'training.json').exists():
        known = read_json(folder/'training.json')
        if differ := [f'{k} was {known[k]} and is now {v}' for k, v in asked.items() if known[k] != v]: raise UserError(f'{o.work} holds an examiner of other settings ({"; ".join(differ)}): choose another --work.')
    else:
        pool = Pool(faces)
        x, start = squares(pool.portraits, 6, o.side), time.perf_counter()
        net, losses = train_swap(x, o.steps, seed=o.seed, bf16=o.bf16)
        facts = asked | dict(people=len(x), bf16=o.bf16, minutes=round((time.perf_counter() - start)/60, 1), numbers=sum(p.numel() for p in net.parameters()), loss=float(losses[-100:].mean()))
        save_swap(net, pool.names, folder)
        write_json(folder/'training.json', facts | quality(net, x[:, 0].float()/255))
    return *load_swap(folder), read_json(folder/'training.json')


@torch.inference_mode()
def quality(net, frames):
    "How well everybody is drawn again, and whether a swap resembles the person who was asked for; light and colour are the frame's, so each picture is compared without its mean and spread"
    who = torch.arange(len(frames))
    own, swapped = (torch.cat([net(f, w) for f, w in zip(frames.split(64), n.split(64))]) for n in (who, who.roll(1)))
    bare = lambda x: (x - x.mean((2, 3), keepdim=True))/x.std((2, 3), keepdim=True)
    gap = lambda a, b: (bare(a) - bare(b)).abs().mean((1, 2, 3))
    average = frames.mean(0, keepdim=True).expand_as(frames)
    return dict(drawn_again=float(drawing_loss(own, frames)), average_face=float(drawing_loss(average, frames)), nearer_to_the_name=float((gap(swapped, frames.roll(1, 0)) < gap(swapped, frames)).float().mean()))


def sets(o, portraits):
    "name -> (source, people nobody trains on)"
    names, strangers = [portraits[i][0] for i in range(len(portraits))], AstronautFaces(o.people[2], seed=1)
    return {'forge of portraits': (portraits, split_people(names, 0, *o.people[:2])['test']), STRANGERS: (strangers, [strangers[i][0] for i in range(len(strangers))])}


def picture(root, kind, to, n=8):
    "First frames of real clips and of what the network made of them, labelled"
    first = lambda method, name: next(iter(read_frames(root/clip_path(method, kind, name), [0])))[-1]
    names = sorted(f.stem for f in (root/clip_path('NeuralSwap', kind, '')).parent.glob('*_*.mp4'))
    rows = [np.vstack([first('original', name[:3]), *(label_forged(first(m, name)) for m in NEURAL)]) for name in names[::max(1, len(names)//n)][:n]]
    save_image(to, cv2.resize(np.hstack(rows), None, fx=.6, fy=.6, interpolation=cv2.INTER_AREA), quality=85)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--faces', default='portraits', help="'portraits' (fetched by `madd portraits`), or a folder with the same files")
    p.add_argument('--model', nargs='*', default=['madd-lite'], help='finished models, by folder or name; name=folder gives a row another name; the others are compared with the first')
    p.add_argument('--people', type=int, nargs=3, default=PEOPLE, metavar=('VAL', 'TEST', 'STRANGERS'), help='as the detectors were trained: people who validated, people kept for the end; and built-in identities (default: %(default)s)')
    p.add_argument('--crfs', type=int, nargs='+', default=CRFS, help='compressions (default: %(default)s)')
    p.add_argument('--frames', type=int, default=4, help='of every clip (default: %(default)s)')
    p.add_argument('--jobs', type=int, help='processes that forge (default: one per core)')
    p.add_argument('--steps', type=int, default=3000); p.add_argument('--side', type=int, default=80); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--bf16', action='store_true', help='half precision where it is safe: faster on processors with AMX')
    p.add_argument('--work', type=Path, default=Path('runs/neural')); p.add_argument('--out', type=Path, default=Path('bench/results/neural.json'))
    p.add_argument('--picture', type=Path, help='also save a picture of labelled examples, of built-in identities')
    o = p.parse_args()
    reuse_memory()
    portraits = face_source(o.faces)
    tested = sets(o, portraits)
    models = dict(map(named, o.model))
    if len(models) < len(o.model): raise UserError('Two models have the same name: give them as name=folder.')
    nets = {name: sized(where) for name, where in models.items()}      # before anything long
    net, number, facts = examiner(o, ConcatDataset([portraits, tested[STRANGERS][0]]))
    scores = {name: [] for name in nets}
    for what, (source, names) in tested.items():
        work, few = o.work/what.replace(' ', '_'), Only(source, names)
        neural_clips(forge_set(work/'data', few, len(names), o.frames, 0, crfs=tuple(o.crfs), workers=o.jobs), few, net, number)
        for name, model in nets.items():
            crops, at = test_clips(names, source, work, model.notes['size'], model.notes['margin'], o.frames, tuple(o.crfs))
            scores[name].append(apart(score_crops(model, crops, at), what))
    scores = {k: pd.concat(v, ignore_index=True) for k, v in scores.items()}
    table = metrics_table(scores, by='target')
    rows = table[table.method != 'all'][['model', 'level', 'dataset', 'compression', 'method', 'auc', 'lo', 'hi', 'videos']]
    write_json(o.out, dict(date=today(), command=command(), hardware=cpu(), threads=torch.get_num_threads(), examiner=facts, frames=o.frames, people={k: len(n) for k, (_, n) in tested.items()}, models={k: fingerprint(model_folder(v)) for k, v in models.items()},
               data='clips of people no detector was trained on; AUC intervals are over people; the other five methods are the ones the detectors know', rows=[{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows.to_dict('records')], gains=list(gains(scores))))
    if o.picture: picture(o.work/STRANGERS.replace(' ', '_')/'data', f'c{min(o.crfs)}', o.picture)   # only people who do not exist are shown
    print(rows[rows.method.isin(list(NEURAL))].round(3).to_string(index=False))


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'{e}')
