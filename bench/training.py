"""What does one training step cost beside the plain backbone's?  python bench/training.py [--out bench/results/training.json]

EfficientNet-B4 at 380 pixels, batch 4, float32, on the CPU, random weights: one step of plain timm, two passes of it (the floor of a step with an
augmented pass), and MADD `paper` and `released` with AGDA; in one run, one after the other in turns. The figure is the median of the ratios to plain
timm, turn by turn. Peak memory comes from one process per kind. The GPU's figures are in bench/gpu.py."""
import argparse, os, resource, subprocess, sys, time
from statistics import median

import timm, torch
import torch.nn.functional as F

from common import command, cpu, today
from gpu import Step
from madd.core import read_json, reuse_memory, write_json
from madd.model import MADD

SEED, LIMITS = 0, {'paper + AGDA': 2.3, 'released + AGDA': 3.0}


class Twice(Step):
    "Plain timm, two passes per step: nobody can augment with a second pass for less"
    def __call__(self, x, y):
        loss = F.cross_entropy(self.model(x), y) + F.cross_entropy(self.model(x.flip(-1)), y)
        self.opt.zero_grad(set_to_none=True); loss.backward(); self.opt.step()
        return loss.detach()


def kinds(layout):
    plain, cpu = lambda: timm.create_model('efficientnet_b4', num_classes=2), torch.device('cpu')
    made = {'plain': lambda: Step(plain(), False, None, cpu), 'plain, two passes': lambda: Twice(plain(), False, None, cpu)}
    for recipe in ('paper', 'released'): made[f'{recipe} + AGDA'] = lambda recipe=recipe: Step(MADD('efficientnet_b4', recipe=recipe, pretrained=False), True, None, cpu)
    def in_layout(make):
        def build():
            torch.manual_seed(SEED); step = make()
            if layout == 'contiguous': step.model.to(memory_format=torch.contiguous_format)
            return step
        return build
    return {k: in_layout(v) for k, v in made.items()}


def peak_gib():
    "The most memory this process has held; getrusage would tell that of its parent when that was more"
    try: return int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))/2**20
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**30 if sys.platform == 'darwin' else 2**20)


def batch(n, layout):
    torch.manual_seed(SEED)
    x = torch.randn(n, 3, 380, 380).clamp(-1, 1)
    return x.to(memory_format=torch.channels_last) if layout == 'channels_last' else x, torch.arange(n) % 2


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--turns', type=int, default=5); p.add_argument('--batch', type=int, default=4); p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--layouts', nargs='+', default=['contiguous', 'channels_last']); p.add_argument('--memory-of', help=argparse.SUPPRESS); p.add_argument('--out')
    a = p.parse_args()
    torch.set_num_threads(a.threads); reused, rows = reuse_memory(), {}
    if a.memory_of:
        step, (x, y) = kinds(a.layouts[0])[a.memory_of](), batch(a.batch, a.layouts[0])
        for _ in range(2): step(x, y)
        return print(peak_gib())
    for layout in a.layouts:
        steps, (x, y) = {k: make() for k, make in kinds(layout).items()}, batch(a.batch, layout)
        times = {k: [] for k in steps}
        for turn in range(a.turns + 1):                       # the first turn warms up
            for k in list(steps)[::(-1)**turn]:
                start = time.perf_counter(); steps[k](x, y); times[k].append(time.perf_counter() - start)
        del steps
        for k, t in times.items():
            ratio = median(m/q for m, q in zip(t[1:], times['plain'][1:]))
            memory = float(subprocess.run([sys.executable, __file__, '--memory-of', k, '--layouts', layout, '--batch', str(a.batch), '--threads', str(a.threads)], capture_output=True, text=True, check=True).stdout)
            rows[f'{layout}, {k}'] = dict(seconds=round(median(t[1:]), 3), ratio=round(ratio, 3), limit=LIMITS.get(k), peak_gib=round(memory, 2))
            print(f'{layout:14s} {k:18s} {rows[f"{layout}, {k}"]}', flush=True)
    if a.out: write_json(a.out, dict(date=today(), command=command(), seed=SEED, hardware=cpu(), threads=a.threads,
        torch=torch.__version__, timm=timm.__version__, allocator='glibc, thresholds raised (madd.core.reuse_memory)' if reused else 'default', batch=a.batch, rows=rows))


if __name__ == '__main__': main()
