"""What does an exported graph cost, beside plain B4?  python bench/export.py --out bench/results/export.json

EfficientNet-B4 at 380 pixels, float32, random weights, batch 8 and batch 1: plain timm B4 and MADD (recipes `paper` and `released`), each in eager PyTorch,
ONNX Runtime and OpenVINO with the same number of threads, in one run, one call of each in turn, so that a machine that drifts drifts for all of them.
The figure is the median of the ratios, turn by turn: to the plain B4 in eager PyTorch, and of an exported MADD to the exported plain B4 in the same runtime.
Eager PyTorch spends much of a large batch on page faults, so it is there twice: as installed, in a process of its own with the C allocator's defaults, and
with madd's settings (`madd.core.reuse_memory`), which everything else here has too. Both ratios are printed.
Plain B4 is timed as everybody has it (floats in, logits out); the exported graphs read bytes, normalise, and give the attention maps too."""
import argparse, multiprocessing, os, tempfile, time
from pathlib import Path
from statistics import median

import numpy as np, onnx, onnxruntime, openvino, timm, torch

from common import command, cpu, today
from madd.core import reuse_memory, write_json
from madd.export import GraphEngine, TorchEngine, export, parity, trial_crops
from madd.model import MADD, PlainDetector

SEED, SIZE, BACKBONE = 0, 380, 'efficientnet_b4'
LIMITS = {'of eager plain': .35, 'of exported plain': 1.6}   # the best runtime at batch 8
RUNTIMES = ('onnx', 'openvino')
DEFAULT, TUNED = 'plain, eager, default allocator', 'plain, eager'


def plain_eager(threads):
    "timm's B4 as a function of crops; the floats are made once and not timed"
    torch.manual_seed(SEED); torch.set_num_threads(threads)
    net, floats = timm.create_model(BACKBONE, num_classes=2).eval(), {}
    def run(crops):
        if len(crops) not in floats: floats[len(crops)] = torch.from_numpy(crops).permute(0, 3, 1, 2).float().contiguous()/127.5 - 1
        with torch.inference_mode(): return net(floats[len(crops)])
    return run


def serve(pipe, threads):
    "The same in a process of its own, whose allocator nobody has touched; answers when it is done"
    run = plain_eager(threads)
    try:
        while True:
            crops = np.resize(trial_crops(SIZE), (pipe.recv(), SIZE, SIZE, 3))
            run(crops); pipe.send(True)
            while pipe.recv(): run(crops); pipe.send(True)
    except EOFError: return                                               # the other side has finished


class Remote:
    "Plain B4 in the other process as a function of crops; a call costs one byte each way"
    def __init__(self, threads):
        context = multiprocessing.get_context('spawn')
        self.pipe, other = context.Pipe(); self.n = None
        self.process = context.Process(target=serve, args=(other, threads), daemon=True); self.process.start()

    def __call__(self, crops):
        if self.n != len(crops):
            if self.n: self.pipe.send(False)
            self.n = len(crops); self.pipe.send(self.n)
        else: self.pipe.send(True)
        self.pipe.recv()


def make(folder, threads):
    "Every contestant as (name, function of crops), the reference first; and how far each graph is from PyTorch"
    torch.manual_seed(SEED)
    models = dict(plain=PlainDetector(BACKBONE, pretrained=False), **{r: MADD(BACKBONE, recipe=r, pretrained=False) for r in ('paper', 'released')})
    runs, gaps = {DEFAULT: Remote(threads), TUNED: plain_eager(threads)}, {}
    for name, model in models.items():
        model.notes.update(size=SIZE); model.save(folder/name)
        reference = TorchEngine(model.eval(), 'cpu')
        if name != 'plain': runs[f'{name}, eager'] = reference
        for runtime in RUNTIMES:
            path = export(folder/name, runtime)
            runs[f'{name}, {runtime}'] = engine = GraphEngine(path, runtime, threads)
            gaps[f'{name}, {runtime}'] = parity(engine, reference, SIZE)._asdict()
    return runs, gaps


def compare(runs, crops, turns):
    "name -> milliseconds, ratio to the first, and of an exported MADD the ratio to the exported plain: medians over the turns"
    for run in runs.values(): run(crops)                                  # warm up
    times = {name: [] for name in runs}
    for turn in range(turns):
        for name in (list(runs) if turn % 2 else list(runs)[::-1]):
            start = time.perf_counter(); runs[name](crops); times[name].append(time.perf_counter() - start)
    ratio = lambda a, b: round(median(x/y for x, y in zip(times[a], times[b])), 3)
    rows = {}
    for name, t in times.items():
        rows[name] = dict(ms=round(1000*median(t), 1), ratio=ratio(name, DEFAULT), to_tuned=ratio(name, TUNED))
        if not name.startswith('plain'): rows[name]['to_exported'] = ratio(name, f'plain, {name.split(", ")[1]}')
    return rows


def best(rows, recipe):
    "The faster runtime of a recipe: its name and ratios; the exported plain is the faster one too"
    name, row = min(((n, r) for n, r in rows.items() if n.startswith(recipe) and 'eager' not in n), key=lambda x: x[1]['ms'])
    floor = min(r['ms'] for n, r in rows.items() if n.startswith('plain') and 'eager' not in n)
    return {'runtime': name.split(', ')[1], 'of eager plain': row['ratio'], 'of eager plain, allocator tuned': row['to_tuned'], 'of exported plain': round(row['ms']/floor, 3)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--turns', type=int, default=15); p.add_argument('--batches', type=int, nargs='+', default=[8, 1])
    p.add_argument('--threads', type=int, default=min(2, os.cpu_count())); p.add_argument('--out')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    reused, rows, found = reuse_memory(), {}, {}
    with tempfile.TemporaryDirectory() as tmp:
        runs, gaps = make(Path(tmp), args.threads)
        for b in args.batches:
            rows[f'batch {b}'] = got = compare(runs, np.resize(trial_crops(SIZE), (b, SIZE, SIZE, 3)), args.turns)
            found[f'batch {b}'] = {r: best(got, r) for r in ('paper', 'released')}
            print(f'batch {b}:')
            for name, row in got.items(): print(f'  {name:32s} {row["ms"]:7.0f} ms   {row["ratio"]:.3f} of plain, eager   {row["to_tuned"]:.3f} with the allocator tuned' + (f'   {row["to_exported"]:.2f} of plain in the same runtime' if 'to_exported' in row else ''), flush=True)
            print('  best:', found[f'batch {b}'], flush=True)
    result = dict(date=today(), command=command(), seed=SEED, size=SIZE, hardware=cpu(), threads=args.threads, turns=args.turns,
                  versions=dict(torch=torch.__version__, timm=timm.__version__, onnx=onnx.__version__, onnxruntime=onnxruntime.__version__, openvino=openvino.__version__),
                  allocator={DEFAULT: 'default', 'all others': 'glibc, thresholds raised (madd.core.reuse_memory)' if reused else 'default'}, limits=LIMITS, rows=rows, best=found, largest_difference=gaps)
    if args.out: write_json(args.out, result)


if __name__ == '__main__': main()
