"""The robustness sweep of the two networks a `madd demo` run has trained, on its unseen people.

    madd demo runs/demo                                  # about ten minutes on two cores
    python bench/stress.py runs/demo                     # writes bench/results/stress.csv, resumable; some ten minutes more

Notebook 12b_stress draws the stored table."""
import argparse, datetime, json, platform, tempfile
from pathlib import Path

import torch

from madd.core import write_json
from madd.manifest import read_manifest
from madd.model import load
from madd.stress import stress

HERE = Path(__file__).resolve().parent


def main(demo, work, out, compression='c23', names=None):
    crops, models = read_manifest(demo/'crops/manifest.parquet'), {'MADD': load(demo/'madd'), 'plain': load(demo/'plain')}
    crops = crops[crops.compression == compression]
    table = stress(models, crops, demo/'crops', work, n=500, names=names)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out/'stress.csv', index=False, float_format='%.6g')
    job = json.loads((demo/'settings.json').read_text())
    write_json(out/'stress.json', dict(date=datetime.date.today().isoformat(), machine=f'{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, no GPU',
               job=job, crops=f'unseen people, {compression}', people=int(crops[crops.split == 'test'].target.nunique()), resamples=500))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('demo', type=Path); p.add_argument('--work', type=Path, help='finished cells are kept here'); p.add_argument('--out', type=Path, default=HERE/'results')
    p.add_argument('--names', nargs='*', help='some of the stresses; all by default')
    a = p.parse_args()
    main(a.demo, a.work or Path(tempfile.mkdtemp()), a.out, names=a.names)
