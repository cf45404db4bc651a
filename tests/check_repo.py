"""Promises about the repository, checked: notebooks are clean and show no path of a machine, the library is what they export, the README and the line under each title are current."""
import json, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def contents(*patterns):
    return {p: p.read_bytes() for pattern in patterns for p in sorted(ROOT.glob(pattern))}


def unchanged_by(command, *patterns):
    "Run a command and list the files it changed; they are put back as they were"
    before = contents(*patterns)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = contents(*patterns)
    changed = [p for p in {**before, **after} if before.get(p) != after.get(p)]
    for p in changed:
        if p in before: p.write_bytes(before[p])
    return [str(p.relative_to(ROOT)) for p in changed]


def machine_paths():
    "Notebooks whose outputs show where they were run"
    outputs = lambda p: json.dumps([o for c in json.loads(p.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])])
    return [p.name for p in sorted(ROOT.glob('nbs/*.ipynb')) if any(s in (text := outputs(p)) for s in ('site-packages', str(ROOT) + '/', str(Path.home()) + '/'))]


def main():
    bin_ = Path(sys.executable).parent
    failed = False
    for name, command, patterns in (
            ('nbdev_clean', [bin_/'nbdev_clean'], ['nbs/*.ipynb']),
            ('nbdev_export', [bin_/'nbdev_export'], ['madd/**/*.py', 'pyproject.toml']),
            ('docs/course.py', [sys.executable, 'docs/course.py'], ['nbs/*.ipynb']),
            ('docs/readme.py', [sys.executable, 'docs/readme.py'], ['README.md', 'docs/images/*'])):
        changed = unchanged_by(command, *patterns)
        failed |= bool(changed)
        print(f'{name}: ' + (f'changed {", ".join(changed)}: run it and commit the result' if changed else 'changes nothing'))
    if found := machine_paths(): failed = True; print(f'paths of a machine in the outputs of {", ".join(found)}: run them again without')
    sys.exit(1 if failed else 0)


if __name__ == '__main__': main()
