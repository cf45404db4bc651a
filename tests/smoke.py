"""Does an installed madd work?  python tests/smoke.py

Needs nothing but the wheel and its requirements: no network, no GPU, no test runner, no notebook tool.
Walks through every module, one training step with all the paper's parts, saving, loading, a verdict of that network and of the one in the box, and the command.
"""
import importlib, os, pkgutil, platform, shutil, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')


def imports():
    "Every module of the package; neither the test runner nor the notebook tool may come along"
    import madd
    names = sorted(m.name for m in pkgutil.iter_modules(madd.__path__) if not m.name.startswith('_'))
    for n in names: importlib.import_module(f'madd.{n}')
    stray = {'pytest', 'nbdev'} & set(sys.modules)
    assert not stray, f'the library imports {stray}'
    assert (Path(madd.__file__).parent/'portraits.csv').is_file(), 'portraits.csv is not in the wheel'
    return f'{len(names)} modules of madd {madd.__version__} in {Path(madd.__file__).parent}'


def small_model():
    import torch
    from madd.model import MADD
    torch.manual_seed(0)
    return MADD('mobilenetv2_035', n_maps=2, pretrained=False)


def forward():
    import torch
    parts = small_model().eval().analyse(torch.zeros(2, 3, 64, 64))
    assert parts.logits.shape == (2, 2) and parts.attention.shape[:2] == (2, 2)
    return f'logits {tuple(parts.logits.shape)}, attention {tuple(parts.attention.shape)}'


def training_step(folder):
    "One step with RIL and AGDA through the fastai learner, then the same network from disk"
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from madd.model import load
    from madd.train import madd_learner
    g = torch.Generator().manual_seed(0)
    data = [(torch.rand(3, 64, 64, generator=g)*2 - 1, torch.tensor(i % 2)) for i in range(8)]
    dls = DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8), device='cpu')
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    learn = madd_learner(dls, model, path=folder/'model', ril=True, agda=True)
    learn.fit(1)
    assert any((a != b).any() for a, b in zip(before, model.parameters())), 'nothing was learnt'
    assert float(learn.history.table.iloc[-1].filter(like='loss').iloc[0]) > 0
    model.save(folder/'model')
    again, x = load(folder/'model'), torch.stack([d[0] for d in data])
    with torch.inference_mode(): assert torch.allclose(again(x), model.eval()(x), atol=1e-4), 'the loaded network answers differently'
    return 'trained, saved, loaded'


def verdict(folder):
    "One picture that every installation has, judged by the network of the step before"
    from skimage.data import astronaut
    from madd.media import save_image
    from madd.predict import Detector
    v = Detector.load(folder/'model', device='cpu').predict(save_image(folder/'astronaut.png', astronaut()))
    assert v.probability is not None and len(v.frames) == 1, v
    return f'{v.verdict}, P(fake) = {v.probability:.2f} (one step of training: the number means nothing)'


def box(folder):
    "The same picture, judged by the detector that comes with the package, without its name"
    from skimage.data import astronaut
    from madd.media import save_image
    from madd.model import model_folder
    from madd.predict import Detector
    v, size = Detector.load(device='cpu').predict(save_image(folder/'astronaut.png', astronaut())), sum(p.stat().st_size for p in model_folder('madd-lite').iterdir())
    assert v.probability is not None and v.model and size <= 15e6, (v, size)
    return f'madd-lite ({size/1e6:.1f} MB): {v.verdict}, P(fake) = {v.probability:.2f}'


def command():
    "The `madd` command of this environment"
    script = shutil.which('madd', path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, '-c', 'import sys; from madd.cli import main; sys.exit(main())']
    said, took = {}, {}
    for option in ('--help', '--version'):
        t = time.perf_counter()
        done = subprocess.run([*start, option], capture_output=True, text=True, timeout=60)
        took[option] = time.perf_counter() - t
        assert done.returncode == 0 and not done.stderr, (option, done.returncode, done.stderr)
        said[option] = done.stdout
    import madd
    assert madd.__version__ in said['--version'] and 'predict' in said['--help']
    return f"madd --help answered in {took['--help']:.2f} s"


def versions():
    from importlib.metadata import version
    names = ('torch', 'torchvision', 'timm', 'fastai', 'fastcore', 'opencv-python', 'onnxruntime', 'av', 'numpy', 'pandas', 'typer')
    return ', '.join([f'Python {platform.python_version()}', *(f'{n} {version(n)}' for n in names)])


def main():
    with tempfile.TemporaryDirectory() as tmp:
        steps = [imports, forward, lambda: training_step(Path(tmp)), lambda: verdict(Path(tmp)), lambda: box(Path(tmp)), command, versions]
        for name, step in zip(('import', 'forward', 'training', 'verdict', 'box', 'command', 'versions'), steps):
            t = time.perf_counter()
            print(f'{name:9} ok  {step()}  [{time.perf_counter() - t:.1f} s]', flush=True)
    print('smoke: all good')


if __name__ == '__main__': main()
