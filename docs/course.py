"""The line under every notebook's title: what comes before, what comes after, how long it takes to read and to run.

`python docs/course.py` writes it, `--run` first runs every notebook, keeps the outputs and records the seconds in bench/results/notebooks.json."""
import datetime, json, os, platform, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent
TIMES = ROOT/'bench'/'results'/'notebooks.json'
MARK, SPEED = '<!-- course -->', 150   # words a minute: code and pictures want to be looked at


def lessons(): return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))


def minutes(nb):
    "Reading time of the prose"
    words = sum(len(c.source.split()) for c in nb.cells if c.cell_type == 'markdown' and not c.source.startswith(MARK))
    return max(1, round(words/SPEED))


def line(i, paths, nb, seconds):
    "The line of the i-th notebook"
    link = lambda p: f'[{p.stem}]({p.name})'
    where = [f'before: {link(p)}' for p in paths[max(i-1, 0):i]] + [f'next: {link(p)}' for p in paths[i+1:i+2]]
    how = f'{minutes(nb)} min to read' + (f', {max(5, 5*round(seconds/5))} s to run' if seconds else '')
    return f'{MARK}\n*{" · ".join([*where, how])}*'


def put(nb, text):
    "Set the line right after the opening: title, promise, strip"
    old = next((c for c in nb.cells if c.cell_type == 'markdown' and c.source.startswith(MARK)), None)
    if old is not None: old.source = text; return nb
    title = next(i for i, c in enumerate(nb.cells) if c.cell_type == 'markdown' and c.source.startswith('# '))
    strip = next((i for i, c in enumerate(nb.cells) if c.cell_type == 'code' and 'pipeline_strip(' in c.source and i <= title + 2), title)
    nb.cells.insert(max(title, strip) + 1, nbformat.v4.new_markdown_cell(text, id='course00'))
    return nb


def execute(path):
    "Run one notebook from a fresh kernel, keep its outputs; gives the seconds"
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    kept = {i: c.source for i, c in enumerate(nb.cells) if 'nbdev_export(' in c.source}
    for i in kept: nb.cells[i].source = ''                 # two at a time must not write the library
    start = time.perf_counter()
    NotebookClient(nb, timeout=300, kernel_name='python3', store_widget_state=False, resources={'metadata': {'path': str(path.parent)}}).execute()
    seconds = time.perf_counter() - start
    for i, source in kept.items(): nb.cells[i].source = source
    nbformat.write(nb, path)
    subprocess.run([str(Path(sys.executable).parent/'nbdev_clean'), '--fname', str(path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return seconds


def run_all():
    "Every notebook, two at a time with one thread each; outputs and seconds are kept"
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
    def one(p):
        done = subprocess.run([sys.executable, __file__, '--one', str(p)], cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode: sys.stderr.write(f'{p.name} failed:\n{done.stderr[-2000:]}\n'); return p.stem, None
        print(f'{p.stem:18} {float(done.stdout.split()[-1]):6.1f} s', flush=True)
        return p.stem, round(float(done.stdout.split()[-1]), 1)
    with ThreadPoolExecutor(2) as pool: found = dict(pool.map(one, sorted((ROOT/'nbs').glob('*.ipynb'))))
    if None in found.values(): sys.exit('Not every notebook ran; nothing was recorded.')
    out = dict(date=datetime.date.today().isoformat(), hardware=f'{platform.machine()}, {os.cpu_count()} cores, two notebooks at a time, one thread each', seed='as in each notebook',
               data='built-in identities', command='python docs/course.py --run', seconds=found)
    TIMES.write_text(json.dumps(out, indent=1) + '\n')


def main():
    if '--one' in sys.argv: print(execute(Path(sys.argv[-1]))); return
    if '--run' in sys.argv: run_all()
    seconds = json.loads(TIMES.read_text())['seconds'] if TIMES.exists() else {}
    paths, changed = lessons(), 0
    for i, p in enumerate(paths):
        before = p.read_text(encoding='utf-8')
        nb = nbformat.reads(before, 4)
        after = nbformat.writes(put(nb, line(i, paths, nb, seconds.get(p.stem))), 4)
        if after.strip() == before.strip(): continue
        changed += 1
        p.write_text(after.rstrip('\n') + '\n', encoding='utf-8')
    print(f'{changed} of {len(paths)} notebooks changed')


if __name__ == '__main__': main()
