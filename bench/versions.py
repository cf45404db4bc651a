"""What is each version of the endless forge worth?  python bench/versions.py version1=madd-lite version4=runs/weights4/madd-lite [--clips runs/weights4] [--add]

Puts the results of finished trainings side by side that `bench/weights.py` made with the same recipe on different versions of the forge (`FORGE_VERSION`, 03a_endless), on the same clips of the same people.
What they say to pictures nobody forged, and to forgeries whose traces lie elsewhere, is measured by bench/shortcuts.py; and bench/neural.py judges them on clips that were forged by formulas and by a network, and compares them person by person."""
import argparse
from pathlib import Path

import pandas as pd

from common import command, named, today
from madd.core import UserError, read_json, write_json
from madd.model import model_folder
from madd.runs import read_config
from weights import compared

KEYS = ('level', 'dataset', 'compression', 'method', 'auc', 'lo', 'hi')


def known(word):
    "What a folder of bench/weights.py says about its training, with its AUC of videos; and the settings of that training"
    name, folder = named(word)
    r = read_json(model_folder(folder)/'results.json')
    a, notes = r['about'], read_json(model_folder(folder)/'config.json')['notes']
    rows = [{k: x[k] for k in KEYS} for x in r['rows'] if x['model'] == 'madd-lite' and x['level'] == 'video' and x['auc'] is not None]
    return dict(name=name, forge=a.get('forge', 1), fingerprint=a['fingerprints']['madd-lite'], date=a['date'], hours=a['hours'], hardware=a['hardware'], threads=a['threads'], people=a['people'],
                validation_auc=next(v['auc'] for v in notes['calibration']['validation'] if (v['level'], v['step']) == ('video', 'raw')),   # files of the people whom calibration saw
                portraits_called_fake=next(g for g in a['portraits_called_fake'] if g['group'] == 'all'), history=a['history'], rows=rows), read_config(model_folder(folder)/'config.yaml')


def earlier(out, models):
    "Versions of a record whose folders need not exist any more; one of its models must be named again, so that all are of one recipe"
    kept = read_json(out)['models']
    if not {m['fingerprint'] for m in kept} & {m['fingerprint'] for m in models}: raise UserError(f'{out} holds none of these models: name one of them again, so that the settings of its training can be compared.')
    return [m for m in kept if m['forge'] not in {n['forge'] for n in models}]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('models', nargs='+', help='name=folder'); p.add_argument('--out', type=Path, default=Path('bench/results/forge_versions.json'))
    p.add_argument('--add', action='store_true', help='keep the versions that the record holds already and that are not named here')
    p.add_argument('--clips', type=Path, help='folder of a training of bench/weights.py, whose clips the models judge again, to be compared person by person with the first')
    a = p.parse_args()
    models, configs = zip(*(known(w) for w in a.models))
    models = sorted([*(earlier(a.out, models) if a.add else []), *models], key=lambda m: m['forge'])
    if any(c != configs[0] for c in configs): raise UserError('These were trained with different settings, not only on different versions of the forge.')
    if len({m['forge'] for m in models}) < len(models): raise UserError('Two of these were trained on the same version of the forge.')
    more = dict(gains=compared(dict(map(named, a.models)), a.clips)) if a.clips else {k: v for k, v in read_json(a.out).items() if k == 'gains'} if a.add else {}
    write_json(a.out, dict(date=today(), command=command(), data='forged and real clips of people nobody trained on (bench/weights.py); one training each, intervals over people', models=models, **more))
    table = pd.DataFrame([dict(r, version=m['forge']) for m in models for r in m['rows'] if r['method'] == 'all'])
    print(table.pivot(index=['dataset', 'compression'], columns='version', values='auc').round(3).to_string())


if __name__ == '__main__': main()
