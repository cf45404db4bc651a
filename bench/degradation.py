"""When do attention maps degrade, and what cures it?  python bench/degradation.py [--out bench/results/degradation.json]

Every variant is trained on the same forged people (embedded identities, crf 23) with several seeds; after every epoch the maps of the same 30
forged faces of the validation people are measured (`madd.degradation`). Finished runs are kept in --work and not repeated."""
import argparse, os, time
from pathlib import Path

import timm, torch
from torch import nn

from common import command, cpu, today
from madd.attention import AttentionBlock
from madd.core import read_json, reuse_memory, seed_everything, write_json
from madd.data import dataloaders, index
from madd.degradation import WatchMaps, watched_faces
from madd.extract import extract
from madd.forge_set import forge_set
from madd.model import MADD
from madd.recipes import PARTS
from madd.sources import face_source
from madd.train import train

BACKBONE, SIZE, IDENTITIES, FRAMES, BATCH = 'tf_efficientnet_lite0', 112, 40, 2, 16


class NoNorm(AttentionBlock):
    "The paper's attention block without its batch norm; weights scaled so that maps start at a sensible strength"
    def __init__(self, in_channels, n_maps=4):
        super().__init__(in_channels, n_maps)
        self.norm = nn.Identity()


PARTS['attention']['no_norm'] = NoNorm
NONE, SOFT = dict(loss='none', augment='none'), {}
RELEASED_LOSS = dict(loss='real_center', semantic='standard_norm_bap', loss_weight=.5, loss_settings=dict(margin_in=[.2, -.8], margin_out=.8))
VARIANTS = {
    'paper: none': NONE, 'paper: RIL': dict(augment='none'), 'paper: AGDA': dict(loss='none'), 'paper: RIL + AGDA': SOFT,
    'released RIL': dict(augment='none', **RELEASED_LOSS), 'released RIL + AGDA': RELEASED_LOSS,
    'no batch norm: none': dict(attention='no_norm', **NONE), 'no batch norm: RIL + AGDA': dict(attention='no_norm'),
    'M = 8: none': dict(n_maps=8, **NONE), 'M = 8: RIL + AGDA': dict(n_maps=8),
    'from scratch: none': dict(pretrained=False, **NONE), 'from scratch: RIL + AGDA': dict(pretrained=False),
    'recipe released: none': dict(recipe='released', loss='none', augment='none'), 'recipe released': dict(recipe='released'),
}


def data(work):
    crops_at = work/'crops'/'manifest.parquet'
    if not crops_at.exists():
        forge_set(work/'data', face_source(None, IDENTITIES, 0), IDENTITIES, FRAMES, 0, crfs=(23,))
        extract(index(work/'data'), work/'crops', size=SIZE, n_frames=FRAMES, margin=0.)
    import pandas as pd
    return pd.read_parquet(crops_at), work/'crops'


def run(name, settings, seed, epochs, crops, root, work):
    "One training run; its measures per epoch, read back when it was finished before"
    done = work/'runs'/f'{name.replace(":", "").replace(" ", "_")}_{epochs}_{seed}.json'
    if done.exists(): return read_json(done)
    seed_everything(seed); start = time.perf_counter()
    watch = WatchMaps(**watched_faces(crops, root, 30, SIZE), folder=work/'movies'/done.stem)
    dls = dataloaders(crops, root, size=SIZE, bs=BATCH, augment='flip', seed=seed)
    learn, history = train(dls, MADD(**dict(backbone=BACKBONE) | settings), epochs, seed, lr=1e-3, cbs=[watch])
    row = dict(variant=name, seed=seed, epochs=epochs, seconds=round(time.perf_counter() - start), auc=[round(float(v), 4) for v in history.auc], maps=watch.table.round(4).to_dict('list'))
    write_json(done, row)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, default=Path('runs/degradation')); p.add_argument('--seeds', type=int, default=3); p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--threads', type=int, default=os.cpu_count()); p.add_argument('--only', nargs='*'); p.add_argument('--out')
    args = p.parse_args()
    torch.set_num_threads(args.threads); reuse_memory()
    crops, root = data(args.work)
    rows = []
    for seed in range(args.seeds):
        for name, settings in VARIANTS.items():
            if args.only and name not in args.only: continue
            rows.append(run(name, settings, seed, args.epochs, crops, root, args.work)); last = {k: v[-1] for k, v in rows[-1]['maps'].items()}
            print(f'seed {seed}  {name:28s} AUC {max(rows[-1]["auc"]):.3f}  correlation {last["correlation"]:.2f}  top IoU {last["top_iou"]:.2f}  effective {last["effective"]:.2f}  {rows[-1]["seconds"]} s', flush=True)
            if args.out:
                write_json(args.out, dict(date=today(), command=command(), hardware=cpu(), torch=torch.__version__,
                    timm=timm.__version__, threads=args.threads, data=f'{IDENTITIES} embedded identities, {FRAMES} frames, crf 23, crops of {SIZE} px', backbone=BACKBONE, epochs=args.epochs, batch=BATCH, rows=rows))


if __name__ == '__main__': main()
