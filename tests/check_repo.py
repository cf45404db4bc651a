"""Promises about the repository, checked: notebooks are clean and show no path of a machine, the library is what they export, an exported cell can be read at one glance, links lead somewhere, no picture is drawn where nobody sees it, a lesson ends as lessons do and its exercises are answered, the README and the line under each title are current."""
import ast, json, re, subprocess, sys
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
from cells import directives

GLANCE, LONGEST = 30, 46   # lines of an exported cell that are not empty; the second for the ones named here, with the reason
LONG = {('15_cli', 'train'): 'options of a command', ('15_cli', 'predict'): 'options of a command'}


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
    return [p.name for p in sorted(ROOT.glob('nbs/*.ipynb')) if any(s in (text := outputs(p)) for s in ('site-packages', 'ipykernel_', str(ROOT) + '/', str(Path.home()) + '/'))]


LINK = re.compile(r'\]\(([^)\s#:]+)(?:#[^)]*)?\)')   # to a file, not to an address

def broken_links():
    "Relative links of notebooks, README and model cards that lead nowhere"
    for p in [*sorted(ROOT.glob('nbs/*.ipynb')), ROOT/'README.md', *ROOT.glob('madd/weights/*/README.md')]:
        cells = nbformat.read(p, 4).cells if p.suffix == '.ipynb' else []
        texts = [p.read_text(encoding='utf-8')] if not cells else [c.source for c in cells if c.cell_type == 'markdown'] + [o.data['text/markdown'] for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
        yield from (f'{p.name}: {link}' for t in texts for link in LINK.findall(t) if not (p.parent/link).exists())


def exported_cells():
    "Every exported cell as (notebook, its first function or class, lines that are not empty)"
    for p in sorted(ROOT.glob('nbs/*.ipynb')):
        for c in nbformat.read(p, 4).cells:
            if c.cell_type != 'code' or not {'export', 'exporti', 'exports'} & directives(c): continue
            name = next((o.name for o in ast.parse(c.source).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))), '')
            yield p.stem, name, sum(bool(line.strip()) for line in c.source.splitlines())


def long_cells(cells):
    "Cells that cannot be read at one glance, and excuses that are needed no more"
    long = {(nb, name): n for nb, name, n in cells if n > GLANCE}
    return [f'{nb}: {name} ({n} lines)' for (nb, name), n in long.items() if (nb, name) not in LONG or n > LONGEST] + [f'{nb}: {name} (fits now: take it out of LONG)' for nb, name in LONG if (nb, name) not in long]


SHOWING = ('show_images', 'show_flow')   # they return what they show, so they have to come last in a cell

def unseen():
    "Pictures that a cell draws and nobody sees, because something comes after them"
    for p in sorted((ROOT/'nbs').glob('*.ipynb')):
        for c in nbformat.read(p, 4).cells:
            if c.cell_type != 'code' or not any(f in c.source for f in SHOWING): continue
            calls = [n.value.func for n in ast.parse(c.source).body[:-1] if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
            yield from (f'{p.stem}: {f.id} in cell {c.id}' for f in calls if getattr(f, 'id', '') in SHOWING)


ENDS = ('What to remember', 'Where it goes next', 'Exercises')   # of every lesson that exports something

def headings(p):
    "The text under each heading of the second level or below, heading -> text"
    found, at = {}, ''
    for line in '\n'.join(c.source for c in nbformat.read(p, 4).cells if c.cell_type == 'markdown').splitlines():
        if line.startswith('##'): at = line.lstrip('# ').strip()
        found[at] = found.get(at, '') + line + '\n'
    return found


def unfinished_lessons(folder=ROOT/'nbs'):
    "Lessons without their last sections, and exercises without an answer (or answers without an exercise)"
    answers = {h for h in headings(folder/'90_solutions.ipynb') if 'exercise' in h}
    for p in sorted(folder.glob('[0-9]*.ipynb')):
        sections, number = headings(p), p.stem.split('_')[0]
        if any('export' in directives(c) for c in nbformat.read(p, 4).cells if c.cell_type == 'code'):
            yield from (f'{p.stem} has no section "{h}"' for h in ENDS if h not in sections)
        asked = {f'{number} · exercise {n}' for n in re.findall(r'^(\d+)\. ', sections.get('Exercises', ''), re.M)}
        given = {h for h in answers if h.startswith(number + ' ·')}
        yield from (f'{a} is {"not answered" if a in asked else "answered and not asked"} in {p.stem if a in given else "90_solutions"}' for a in sorted(asked ^ given))


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
    if found := long_cells(exported_cells()): failed = True; print(f'exported cells of more than {GLANCE} lines (or {LONGEST}, where LONG names them): {", ".join(found)}')
    if found := machine_paths(): failed = True; print(f'paths of a machine in the outputs of {", ".join(found)}: run them again without')
    if found := list(unseen()): failed = True; print(f'pictures that nobody sees (the call must come last in its cell): {"; ".join(found)}')
    if found := list(broken_links()): failed = True; print(f'links that lead nowhere: {", ".join(found)}')
    if found := list(unfinished_lessons()): failed = True; print(f'lessons that do not end as lessons do: {"; ".join(found)}')
    sys.exit(1 if failed else 0)


if __name__ == '__main__': main()
