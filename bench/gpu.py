"""Everything a GPU can prove, in one command of at most eight minutes.

    python bench/gpu.py --prepare                 # anywhere: forge the small data set into bench/gpu_crops.npz (ignored by git)
    python bench/gpu.py --out bench/results       # on the GPU: writes gpu-<device>-<date>.json
    python bench/gpu.py --quick --device cpu      # a rehearsal without a GPU, in about a minute

It needs torch, timm and what `madd.model` imports, not fastai. Four questions: are mixed precision and torch.compile right; how many images per
second and how much memory; where does the time go; and do the four variants {none, RIL, AGDA, both} differ on the forge's data, over seeds."""
import argparse, io, json, os, platform, re, sys, time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import timm, torch
import torch.nn.functional as F

from common import command, today
from madd.model import MADD, PlainDetector, frozen_stats
from madd.released import match_loss

HERE = Path(__file__).resolve().parent
CROPS, SEED = HERE/'gpu_crops.npz', 0


def prepare(identities=100, frames=4, size=160):
    "Forge and cut the faces once, where the whole library is installed"
    import tempfile
    from madd.data import index, read_crop
    from madd.extract import extract
    from madd.forge_set import forge_set
    from madd.sources import face_source
    with tempfile.TemporaryDirectory() as tmp:
        forge_set(f'{tmp}/data', face_source(None, identities, SEED), identities, frames, SEED, crfs=(23,))
        df = extract(index(f'{tmp}/data'), f'{tmp}/crops', size=size, n_frames=frames, margin=0., quality=95)
        df = df[df.reason == '']
        x = np.stack([read_crop(f'{tmp}/crops/{c}', size) for c in df.crop])
        np.savez_compressed(CROPS, x=x, y=df.label.to_numpy(np.int64), split=df.split.to_numpy(str), video=df.video.to_numpy(str))
    print(f'{CROPS}: {len(x)} crops, {CROPS.stat().st_size/1e6:.0f} MB')


def sync(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def autocast(device, dtype): return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


class Step:
    "One optimiser step of a model, with or without the second pass"
    def __init__(self, model, agda, dtype, device, lr=1e-3):
        self.model, self.dtype, self.device = model.to(device, memory_format=torch.channels_last).train(), dtype, device
        attentive = hasattr(model, 'analyse')
        self.ril = model.new_loss().to(device) if attentive and model.new_loss() else None
        self.agda = model.new_augment() if attentive and agda else None
        self.opt = torch.optim.Adam(model.parameters(), lr, weight_decay=1e-6, fused=device.type == 'cuda')

    def __call__(self, x, y):
        model = self.model
        with autocast(self.device, self.dtype):
            seen = model.analyse(x) if hasattr(model, 'analyse') else None
            loss = F.cross_entropy((seen.logits if seen else model(x)).float(), y)
        if self.ril is not None: loss = loss + model.recipe.loss_weight*self.ril(seen.semantic.float(), y)
        if self.agda is not None:
            x_aug, index = self.agda(x, seen.attention)
            with autocast(self.device, self.dtype), frozen_stats(model): after = model.analyse(x_aug)
            loss = loss + model.recipe.augment_weight*F.cross_entropy(after.logits.float(), y)
            if model.recipe.match_weight: loss = loss + model.recipe.match_weight*match_loss(seen.semantic, after.semantic, index)
        self.opt.zero_grad(set_to_none=True); loss.backward(); self.opt.step()
        return loss.detach()


def correctness(a, device):
    "Probabilities in mixed precision and compiled, against float32: the largest difference over a batch"
    torch.manual_seed(SEED)
    x, out = torch.randn(8, 3, a.size, a.size, device=device).clamp(-1, 1), {}
    for recipe in ('paper', 'released'):
        model = MADD(a.backbone, recipe=recipe, pretrained=False).to(device)
        with torch.no_grad():
            model.train()(x); model.eval()                            # running statistics that fit the weights a little
            exact = model(x).float().softmax(1)
            for name, dtype in (('bf16', torch.bfloat16), ('fp16', torch.float16)):
                if device.type == 'cpu' and dtype is torch.float16: continue
                with autocast(device, dtype): out[f'{recipe}, {name}'] = float((model(x).float().softmax(1) - exact).abs().max())
            if not a.quick:
                fast = torch.compile(model)
                out[f'{recipe}, compiled'] = float((fast(x).float().softmax(1) - exact).abs().max())
    return out


def speed(a, device):
    "Training steps, interleaved: images per second and peak memory, and the ratio to plain timm"
    kinds = {'plain': lambda: (PlainDetector(a.backbone, pretrained=False), False)}
    for recipe in ('paper', 'released'):
        for agda in (False, True): kinds[f'{recipe}{" + AGDA" if agda else ""}'] = lambda recipe=recipe, agda=agda: (MADD(a.backbone, recipe=recipe, pretrained=False), agda)
    out = {}
    for batch in a.batches:
        rows, steps = {}, {}
        x, y = torch.randn(batch, 3, a.size, a.size, device=device).to(memory_format=torch.channels_last), torch.randint(2, (batch,), device=device)
        for name, make in kinds.items():
            torch.manual_seed(SEED); model, agda = make(); steps[name] = Step(model, agda, torch.bfloat16 if device.type == 'cuda' else None, device)
            for _ in range(a.warm): steps[name](x, y)
            if device.type == 'cuda':
                sync(device); base = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats(); steps[name](x, y); sync(device)
                rows[name] = dict(memory_gb=round((torch.cuda.max_memory_allocated() - base)/1e9, 2))
            else: rows[name] = {}
        times = {name: [] for name in steps}
        for turn in range(a.turns):
            for name in list(steps)[::(-1)**turn]:
                sync(device); start = time.perf_counter(); steps[name](x, y); sync(device); times[name].append(time.perf_counter() - start)
        for name, t in times.items():
            rows[name] |= dict(images_per_second=round(batch/median(t), 1), share_of_plain=round(median(p/q for p, q in zip(times['plain'], t)), 3))
        out[str(batch)] = rows; del steps
        for name, r in rows.items(): print(f'batch {batch:3d}  {name:18s} {r}', flush=True)
    return out


def shares(a, device):
    "Seconds per part of one forward pass, by hooks around the parts"
    out = {}
    for recipe in ('paper', 'released'):
        model, spent, begun = MADD(a.backbone, recipe=recipe, pretrained=False).to(device).eval(), {}, {}
        def before(name):
            def hook(*_): sync(device); begun[name] = time.perf_counter()
            return hook
        def after(name):
            def hook(*_): sync(device); spent[name] = spent.get(name, 0) + time.perf_counter() - begun[name]
            return hook
        for name, m in model.named_children(): m.register_forward_pre_hook(before(name)); m.register_forward_hook(after(name))
        x = torch.randn(a.batches[0], 3, a.size, a.size, device=device)
        with torch.no_grad(), autocast(device, torch.bfloat16 if device.type == 'cuda' else None):
            model(x); spent.clear(); start = time.perf_counter()
            for _ in range(3): model(x)
            sync(device); total = time.perf_counter() - start
        out[recipe] = {k: round(v/total, 3) for k, v in spent.items()}
    return out


def loader(a):
    "JPEG crops decoded per second by worker processes: compare with images per second above"
    from PIL import Image
    rng, files = np.random.default_rng(SEED), []
    for _ in range(16):
        b = io.BytesIO(); Image.fromarray(np.asarray(Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).resize((a.size, a.size)))).save(b, 'JPEG', quality=95); files.append(b.getvalue())
    class Files(torch.utils.data.Dataset):
        def __len__(self): return 64 if a.quick else 2048
        def __getitem__(self, i): return torch.from_numpy(np.array(Image.open(io.BytesIO(files[i % 16])).convert('RGB')))
    workers = min(2 if a.quick else 16, os.cpu_count())
    start, n = time.perf_counter(), 0
    for x in torch.utils.data.DataLoader(Files(), batch_size=32, num_workers=workers): n += len(x)
    return dict(images_per_second=round(n/(time.perf_counter() - start), 1), workers=workers)


def auc(y, p):
    "Chance that a fake scores above a real (ties count half); scikit-learn need not be installed here"
    real, fake = p[y == 0], p[y == 1]
    return float(((fake[:, None] > real).float() + .5*(fake[:, None] == real).float()).mean())


def variants(a, device, until):
    "The four variants on the forge's data, over seeds; whatever is unfinished when time is up is left out and said"
    if not CROPS.exists(): return dict(note=f'no {CROPS.name}: run --prepare first')
    with np.load(CROPS, allow_pickle=False) as f: x, y, split, video = (f[k] for k in ('x', 'y', 'split', 'video'))
    x = torch.from_numpy(x).permute(0, 3, 1, 2).to(device).float().div_(127.5).sub_(1); y = torch.from_numpy(y).to(device)
    if a.quick: x = F.interpolate(x[::6], 64); y, split, video = y[::6], split[::6], video[::6]
    train, test, rows = np.flatnonzero(split == 'train'), np.flatnonzero(split == 'test'), []
    reals, fakes = ([i for i in train if y[i] == c] for c in (0, 1))
    for seed in range(a.seeds):
        for name, kw, agda in (('none', dict(loss='none'), False), ('RIL', {}, False), ('AGDA', dict(loss='none'), True), ('both', {}, True), ('plain', None, False)):
            if time.time() > until: rows.append(dict(variant=name, seed=seed, note='time was up')); continue
            torch.manual_seed(seed); rng = np.random.default_rng(seed)
            model = PlainDetector(a.small) if kw is None else MADD(a.small, **kw)
            step, start = Step(model, agda, torch.bfloat16 if device.type == 'cuda' else None, device), time.time()
            for epoch in range(a.epochs):
                order = rng.permutation(np.concatenate([fakes, rng.choice(reals, len(fakes))]))
                for i in range(0, len(order) - 31, 32):
                    k = torch.as_tensor(order[i:i+32], device=device); b = x[k]
                    step(torch.where(torch.rand(len(b), 1, 1, 1, device=device) < .5, b.flip(-1), b).contiguous(memory_format=torch.channels_last), y[k])
            model.eval(); prob, maps = [], []
            with torch.no_grad():
                for i in range(0, len(test), 64):
                    b = x[torch.as_tensor(test[i:i+64], device=device)]
                    if kw is None: prob.append(model(b).softmax(1)[:, 1])
                    else: seen = model.analyse(b); prob.append(seen.logits.softmax(1)[:, 1]); maps.append(seen.attention.cpu())
            row = dict(variant=name, seed=seed, frame_auc=round(auc(y[torch.as_tensor(test, device=device)].cpu(), torch.cat(prob).float().cpu()), 4), seconds=round(time.time() - start, 1))
            if maps: flat = torch.cat(maps).float().flatten(2); flat = F.normalize(flat - flat.mean(-1, keepdim=True), dim=-1, eps=1e-6); c = flat @ flat.mT; row['map_correlation'] = round(float(c[:, ~torch.eye(c.shape[1], dtype=bool)].mean()), 3)
            rows.append(row); print(row, flush=True)
    return dict(rows=rows, crops=len(x), test=len(test), epochs=a.epochs, backbone=a.small)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--prepare', action='store_true'); p.add_argument('--quick', action='store_true'); p.add_argument('--device', default='cuda')
    p.add_argument('--minutes', type=float, default=7.5); p.add_argument('--seeds', type=int, default=2); p.add_argument('--out', default='')
    a = p.parse_args()
    if a.prepare: return prepare()
    if a.device == 'cuda' and not torch.cuda.is_available(): sys.exit('There is no GPU here; `--quick --device cpu` rehearses the script.')
    device, until = torch.device(a.device), time.time() + 60*a.minutes
    a.backbone, a.small, a.size = ('tf_efficientnet_lite0', 'tf_efficientnet_lite0', 96) if a.quick else ('efficientnet_b4', 'tf_efficientnet_lite0', 380)
    a.batches, a.turns, a.warm, a.epochs = ([4], 3, 1, 1) if a.quick else ([16, 48], 12, 4, 8)
    if a.quick: a.seeds = 1
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    report = dict(date=today(), hardware=name, torch=torch.__version__, timm=timm.__version__, seed=SEED, backbone=a.backbone, size=a.size,
                  precision='bf16 autocast, channels_last' if device.type == 'cuda' else 'float32', command=command())
    for part, f in dict(correctness=lambda: correctness(a, device), speed=lambda: speed(a, device), time_share=lambda: shares(a, device), loader=lambda: loader(a), variants=lambda: variants(a, device, until)).items():
        start = time.time(); report[part] = f(); print(f'{part}: {time.time() - start:.0f} s', flush=True)
        if a.out:      # every part that is done is kept
            path = Path(a.out)/f'gpu-{re.sub("[^A-Za-z0-9]+", "-", name).strip("-").lower()}-{report["date"]}.json'
            path.parent.mkdir(parents=True, exist_ok=True); path.with_suffix('.part').write_text(json.dumps(report, indent=1)); os.replace(path.with_suffix('.part'), path)
    print(json.dumps({k: report[k] for k in ('correctness', 'time_share', 'loader')}, indent=1))


if __name__ == '__main__': main()
