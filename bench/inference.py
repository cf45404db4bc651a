"""What do the paper's parts cost when a trained model looks at faces?  python bench/inference.py [--out bench/results/inference.json]

EfficientNet-B4 at 380 pixels, float32, eager PyTorch, random weights: plain timm, recipe `paper` and recipe `released`, in one run, one call
of each in turn, so that a machine that drifts drifts for all of them. The figure is the median of the ratios to plain timm, turn by turn."""
import argparse, os, time
from statistics import median

import timm, torch

from common import command, cpu, today
from madd.core import reuse_memory, write_json
from madd.model import MADD

SEED, SIZE, LIMITS = 0, 380, dict(paper=1.2, released=1.5)


def seconds(model, x):
    start = time.perf_counter(); model(x)
    if x.is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def compare(models, x, turns):
    "name -> (milliseconds, ratio to the first model): medians over the turns"
    for m in models.values(): seconds(m, x)                                  # warm up
    times = {name: [] for name in models}
    for turn in range(turns):
        order = list(models) if turn % 2 else list(models)[::-1]
        for name in order: times[name].append(seconds(models[name], x))
    first = next(iter(models))
    return {name: dict(ms=round(1000*median(t), 1), ratio=round(median(a/b for a, b in zip(t, times[first])), 3)) for name, t in times.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--turns', type=int, default=15); p.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    p.add_argument('--threads', type=int, default=os.cpu_count()); p.add_argument('--out')
    args = p.parse_args()
    torch.manual_seed(SEED); torch.set_num_threads(args.threads)
    reused = reuse_memory()
    models = dict(plain=timm.create_model('efficientnet_b4', num_classes=2), **{name: MADD('efficientnet_b4', recipe=name, pretrained=False) for name in LIMITS})
    rows = {}
    for layout, memory in (('contiguous', torch.contiguous_format), ('channels_last', torch.channels_last)):
        for m in models.values(): m.eval().to(memory_format=memory)
        for b in args.batches:
            x = torch.randn(b, 3, SIZE, SIZE).to(memory_format=memory)
            rows[f'{layout}, batch {b}'] = got = compare(models, x, args.turns)
            print(f'{layout:14s} batch {b}:  ' + '   '.join(f'{k} {v["ms"]:.0f} ms ({v["ratio"]:.2f})' for k, v in got.items()), flush=True)
    result = dict(date=today(), command=command(), seed=SEED, hardware=cpu(), threads=args.threads,
                  torch=torch.__version__, timm=timm.__version__, allocator='glibc, thresholds raised (madd.core.reuse_memory)' if reused else 'default', limits=LIMITS, rows=rows)
    if args.out: write_json(args.out, result)


if __name__ == '__main__': main()
