"The wheel, built from this tree and installed elsewhere, must work without the tree"
import importlib.util, os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder that holds the unpacked wheel and nothing else; the checkout is copied, so that building leaves no trace in it"
    tmp = tmp_path_factory.mktemp('wheel')
    keep = ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'constraints.txt')
    for name in keep:
        if (ROOT/name).exists(): shutil.copy(ROOT/name, tmp/name)
    shutil.copytree(ROOT/'madd', tmp/'madd', ignore=shutil.ignore_patterns('__pycache__'))
    alone = ['--no-build-isolation'] if importlib.util.find_spec('setuptools') else []   # without setuptools pip fetches it
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    subprocess.run([*pip, 'wheel', '.', '--no-deps', *alone, '-w', 'dist'], cwd=tmp, check=True, timeout=300)
    wheel, = (tmp/'dist').glob('madd-*.whl')
    subprocess.run([*pip, 'install', '--no-deps', '--target', str(tmp/'site'), str(wheel)], check=True, timeout=300)
    return tmp/'site'


def test_the_wheel_holds_the_package_and_its_table(installed):
    for table in (ROOT/'madd').glob('*.csv'): assert (installed/'madd'/table.name).read_bytes() == table.read_bytes()
    assert {p.name for p in (installed/'madd').glob('*.py')} == {p.name for p in (ROOT/'madd').glob('*.py')}


def test_the_wheel_holds_the_weights(installed):
    ours, theirs = ROOT/'madd'/'weights', installed/'madd'/'weights'
    names = {p.relative_to(ours) for p in ours.rglob('*') if p.is_file()}
    assert names >= {Path('madd-lite')/n for n in ('config.json', 'model.safetensors', 'README.md')}
    for n in names: assert (theirs/n).read_bytes() == (ours/n).read_bytes(), n
    assert sum(p.stat().st_size for p in (theirs/'madd-lite').iterdir()) <= 15e6


OFFLINE = """
import socket, sys
from madd.cli import main
def nobody(*args): raise OSError('this test has no network')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = nobody
sys.exit(main(sys.argv[1:]))
"""

def test_a_picture_is_judged_by_the_wheel_alone_without_a_network(installed, tmp_path):
    import json
    from skimage.data import astronaut
    from madd.media import save_image
    save_image(tmp_path/'face.jpg', astronaut())
    env = {k: v for k, v in os.environ.items() if k != 'HF_HUB_OFFLINE'} | dict(PYTHONPATH=str(installed), OMP_NUM_THREADS='1', HOME=str(tmp_path/'home'), TQDM_DISABLE='1')
    ask = lambda *words: subprocess.run([sys.executable, '-c', OFFLINE, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    done = ask('predict', 'face.jpg', '--json', '--device', 'cpu')
    assert done.returncode == 0, done.stdout + done.stderr
    row, = map(json.loads, done.stdout.splitlines())
    assert 0 <= row['probability'] <= 1 and row['size'] == 160 and row['model'] and (tmp_path/'predictions'/'predictions.html').is_file()
    listed = ask('models')
    assert listed.returncode == 0 and row['model'] in listed.stdout and 'What it cannot do' in listed.stdout, listed.stdout + listed.stderr


def test_the_source_archive_holds_the_weights(installed, tmp_path):
    import tarfile
    tree = installed.parent                        # what the wheel was built from
    made = subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '-d', str(tmp_path)], cwd=tree, capture_output=True, text=True, timeout=300)
    if made.returncode and 'setuptools' in made.stderr: pytest.skip('setuptools is not installed here')
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive: names = {n.split('/', 1)[-1] for n in archive.getnames()}
    assert {f'madd/weights/madd-lite/{n}' for n in ('config.json', 'model.safetensors', 'README.md')} <= names


def test_smoke_script_runs_on_the_wheel_alone(installed, tmp_path):
    env = os.environ | dict(PYTHONPATH=str(installed), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, str(ROOT/'tests'/'smoke.py')], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'in {installed}' in done.stdout.splitlines()[0], 'the checkout was used instead of the wheel'
    assert 'all good' in done.stdout
