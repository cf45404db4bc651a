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
    assert (installed/'madd'/'portraits.csv').read_bytes() == (ROOT/'madd'/'portraits.csv').read_bytes()
    assert {p.name for p in (installed/'madd').glob('*.py')} == {p.name for p in (ROOT/'madd').glob('*.py')}


def test_smoke_script_runs_on_the_wheel_alone(installed, tmp_path):
    env = os.environ | dict(PYTHONPATH=str(installed), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, str(ROOT/'tests'/'smoke.py')], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'in {installed}' in done.stdout.splitlines()[0], 'the checkout was used instead of the wheel'
    assert 'all good' in done.stdout
