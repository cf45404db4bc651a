"""Three promises about the repository, checked: notebooks are clean, the library is what they export, the README is what the index shows."""
import subprocess, sys
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


def main():
    bin_ = Path(sys.executable).parent
    failed = False
    for name, command, patterns in (
            ('nbdev_clean', [bin_/'nbdev_clean'], ['nbs/*.ipynb']),
            ('nbdev_export', [bin_/'nbdev_export'], ['madd/**/*.py', 'pyproject.toml']),
            ('docs/readme.py', [sys.executable, 'docs/readme.py'], ['README.md', 'docs/images/*'])):
        changed = unchanged_by(command, *patterns)
        failed |= bool(changed)
        print(f'{name}: ' + (f'changed {", ".join(changed)}: run it and commit the result' if changed else 'changes nothing'))
    sys.exit(1 if failed else 0)


if __name__ == '__main__': main()
