"""The weights in the box, from real faces to a model card:

    python bench/weights.py --out weights            trains, calibrates and measures; a stopped run goes on with the same command
    python bench/weights.py --out weights --compare  ... and says of every number whether it agrees with what madd-lite ships
    python bench/weights.py --out weights --ship madd/weights/madd-lite   replaces what the package ships

Trains exactly as `madd train --recipe forge` does, on public-domain portraits and without a single deepfake. 40 people validate: their forged clips and their untouched
portraits choose the best epoch, the temperature and the thresholds, on files that are judged exactly as `madd predict` judges a file. 60 people are kept for the end, and so are the built-in identities, which are another source altogether."""
import argparse, shutil, time
from pathlib import Path

import numpy as np, pandas as pd, torch

from common import apart, command, cpu, files_of, gains, looks_of, today
from madd.calibrate import calibration_of, set_calibration
from madd.card import write_card
from madd.core import REAL, UserError, progress, read_json, reuse_memory
from madd.data import index
from madd.endless import FORGE_VERSION, ForgeConfig, split_people
from madd.evaluate import metrics_table, score_crops, write_results
from madd.export import fingerprint
from madd.forge import portrait
from madd.forge_set import forge_set
from madd.generalise import Only, called_fake, skin_tone, test_clips
from madd.model import load, model_folder
from madd.predict import Detector
from madd.runs import read_config, run
from madd.sources import AstronautFaces, face_source

FRAMES = 4             # of a clip
PEOPLE = 40, 60, 40   # who validate, who are kept for the end, built-in identities
NOTE = 'This model has learnt from forgeries that madd made of public-domain portraits; how it does on the deepfakes of the internet was not measured.'


def judged(detector, videos):
    "Evidence of files, found and cut as `madd predict` does it: a row per look at a clip, or per view of a picture"
    rows, lost = [], 0
    for v in progress(videos.to_dict('records'), desc='files'):
        p = np.clip(looks_of(detector.predict(v['path'], FRAMES)), 1e-6, 1 - 1e-6)
        lost += not len(p)
        rows += [v | dict(frame=k, prob=float(q), logit=float(np.log(q/(1 - q)))) for k, q in enumerate(p)]
    if lost: print(f'{lost} of {len(videos)} files could not be judged and are left out')
    return pd.DataFrame(rows)


def stills(source, names):
    "The files of untouched portraits, as a table of videos"
    files = files_of(source)
    return pd.DataFrame([dict(path=str(files[n]), video=f'portraits/{n}', target=n, label=REAL, dataset='portraits', method='original', compression='as published', split='val') for n in names])


def clips(names, source, work, net):
    return test_clips(names, source, work, net.notes['size'], net.notes['margin'])


def milliseconds(net, turns=30):
    "One face at batch 1 on one core, median"
    threads, x, took = torch.get_num_threads(), torch.zeros(1, 3, net.notes['size'], net.notes['size']), []
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(turns + 5):
            start = time.perf_counter(); net(x); took.append(1e3*(time.perf_counter() - start))
    torch.set_num_threads(threads)
    return round(float(np.median(took[5:])), 1)


def measured(nets, people, source, strangers, work):
    "Frame scores of every network on both sources, people nobody trained on"
    sets = {'forge of portraits': (people['test'], source), 'forge of built-in identities': ([strangers[i][0] for i in range(len(strangers))], strangers)}
    out = {name: [] for name in nets}
    for what, (names, faces) in sets.items():
        crops, root = clips(names, faces, work/what.replace(' ', '_'), next(iter(nets.values())))
        for name, net in nets.items(): out[name].append(apart(score_crops(net, crops, root), what))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in out.items()}


def settle(folder, people, source, work):
    "Store the trained network in half precision, then calibrate exactly what was stored, on files that `madd predict` itself opens"
    net = load(work/'run'); net.save(folder, half=True)
    net = load(folder)
    forged = index(forge_set(work/'val'/'data', Only(source, people['val']), len(people['val']), FRAMES, 0, crfs=(23, 40), workers=1)).assign(split='val')
    scores = judged(Detector(net, device='cpu'), pd.concat([forged, stills(source, people['val'])], ignore_index=True))
    set_calibration(net, calibration_of(scores))
    if 'verdict' not in net.notes: raise UserError(f'{len(people["val"])} people are too few to choose thresholds with: give more to validate.')
    net.notes['note'] = NOTE
    net.save(folder, half=True)
    return net


def alarms(net, source, names):
    "Untouched portraits of people nobody trained on: of whom `madd predict` says likely fake, by class of skin colour; who cannot be judged is not called anything"
    detector, at = Detector(net, device='cpu'), {source[i][0]: i for i in range(len(source))}
    rows = pd.DataFrame([dict(target=n, label=REAL, prob=float(detector.predict(source.file(at[n])).verdict == 'likely fake'),
                              tone=skin_tone(portrait(source[at[n]][1], detector=detector.faces)).name) for n in progress(names, desc='portraits')])
    return called_fake(rows, .5, rows.tone)


def agreement(rows, shipped):
    "Every AUC beside the shipped one and its interval"
    key = ['model', 'level', 'dataset', 'compression', 'method']
    both = rows.merge(pd.DataFrame(shipped), on=key, suffixes=('', '_shipped'))
    both = both[(both.model == 'madd-lite') & (both.level == 'video')]
    return both.assign(agrees=(both.auc >= both.lo_shipped) & (both.auc <= both.hi_shipped))[[*key[2:], 'auc', 'auc_shipped', 'lo_shipped', 'hi_shipped', 'agrees']]


def compared(models, clips):
    "Every model (name -> folder) against the first, person by person, on the clips that an earlier call left in its --out: people who validate, people kept for the end, built-in identities"
    reuse_memory()
    nets, source = {name: load(folder) for name, folder in models.items()}, face_source('portraits')
    people = split_people([source[i][0] for i in range(len(source))], 0, *PEOPLE[:2])
    scores = measured(nets, people, source, AstronautFaces(PEOPLE[2], seed=1), clips)
    val = index(clips/'val'/'data').assign(split='val')
    return list(gains({name: pd.concat([apart(judged(Detector(net, device='cpu'), val), 'people who validate'), scores[name]], ignore_index=True) for name, net in nets.items()}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('weights'), help='folder of the run, the clips and the result')
    p.add_argument('--faces', default='portraits', help="'portraits' (fetched by `madd portraits`), or a folder with the same files")
    p.add_argument('--set', action='append', default=[], help='a setting of the training, key=value')
    p.add_argument('--ship', type=Path, help='also copy the finished folder here')
    p.add_argument('--compare', action='store_true', help='compare with what madd-lite ships')
    p.add_argument('--people', type=int, nargs=3, default=PEOPLE, metavar=('VAL', 'TEST', 'STRANGERS'), help='people who validate, people kept for the end, built-in identities (default: %(default)s)')
    a = p.parse_args()
    work, start, parts = a.out, time.perf_counter(), dict(zip(('val', 'test'), a.people))
    run(read_config(training='forge', words=a.set, forge=dict(faces=a.faces) | {k: n for k, n in parts.items() if n != getattr(ForgeConfig, k)}), None, work/'run')
    history = {stage: pd.read_csv(work/'run'/at/'history.csv').round(5).to_dict('records') for stage, at in (('first stage', 'pretrain'), ('second stage', ''))}
    hours = sum(r['seconds'] for rows in history.values() for r in rows)/3600
    source = face_source(a.faces)
    people = split_people([source[i][0] for i in range(len(source))], 0, **parts)
    folder = work/'madd-lite'
    net = settle(folder, people, source, work)
    plain = load(work/'run'/'pretrain')
    scores = measured({'madd-lite': net, 'plain': plain}, people, source, AstronautFaces(a.people[2], seed=1), work)
    table = metrics_table(scores, by='target')
    groups = alarms(net, source, people['test'])
    about = dict(date=today(), command=command(), forge=FORGE_VERSION, hardware=cpu(), threads=torch.get_num_threads(), hours=round(hours, 2), milliseconds_per_face=milliseconds(net),
                 data='forged and real clips of people nobody trained on; AUC intervals are over people', over='people', people={k: len(v) for k, v in people.items()},
                 models='madd-lite, and plain: its own backbone after the first stage, an ordinary classifier with less training',
                 fingerprints={'madd-lite': fingerprint(folder)}, history=history, portraits_called_fake=groups.to_dict('records'), training=read_json(work/'run'/'train.json'), environment=read_json(work/'run'/'environment.json'))
    write_results(work/'results', scores, table, about)
    for name in ('config.yaml', 'environment.json', 'train.json'):   # where it comes from; the card is made of these
        shutil.copy(work/'run'/name, folder/name)
    shutil.copy(work/'results'/'results.json', folder/'results.json')
    write_card(folder)
    print(table[(table.level == 'video')][['model', 'dataset', 'compression', 'method', 'auc', 'lo', 'hi']].round(3).to_string(index=False))
    print(groups.round(3).to_string(index=False))
    print(f'{about["milliseconds_per_face"]} ms per face on one core; {hours:.2f} hours of training; {(time.perf_counter() - start)/60:.0f} minutes in this call')
    if a.compare: print(agreement(table, read_json(model_folder('madd-lite')/'results.json')['rows']).round(3).to_string(index=False))
    if a.ship:
        a.ship.mkdir(parents=True, exist_ok=True)
        for f in folder.iterdir(): shutil.copy(f, a.ship/f.name)
        write_card(a.ship)   # inside the package it has a licence of its own


if __name__ == '__main__': main()
