"""Write README.md and its pictures from the executed nbs/index.ipynb: `python docs/readme.py`, or `--check` to compare only."""
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from cells import directives

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Written by docs/readme.py from nbs/index.ipynb: edit the notebook, not this file. -->\n\n'


def readme():
    "The text of the README and its pictures, {name: bytes}"
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not directives(c) & {'hide', 'default_exp'}]
    for c in nb.cells:
        silent = 'echo:false' in directives(c)
        c.source = '' if silent else '\n'.join(line for line in c.source.splitlines() if not line.startswith('#|'))
    nb.metadata['language_info'] = {'name': 'python'}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    pictures = {}
    for i, (name, data) in enumerate(sorted((resources.get('outputs') or {}).items())):
        new = f'index_{i}{Path(name).suffix}'
        text, pictures[new] = text.replace(name, f'docs/images/{new}'), data
    text = re.sub(r'\n *\n!\[png\](.*)\n *\n', r'\n\n![figure]\1\n\n', text)
    text = re.sub(r'\]\((\w+\.ipynb)', r'](nbs/\1', text).replace('](../', '](')   # links as they lead from here
    text = re.sub(r'```python\s*```\n', '', text)   # cells of which only the output is shown
    while '\n\n\n' in text: text = text.replace('\n\n\n', '\n\n')
    return NOTE + text.strip() + '\n', pictures


def main():
    text, pictures = readme()
    files = {ROOT/'README.md': text.encode(), **{ROOT/'docs'/'images'/k: v for k, v in pictures.items()}}
    if '--check' in sys.argv:
        stale = [str(p.relative_to(ROOT)) for p, data in files.items() if not p.exists() or p.read_bytes() != data]
        sys.exit(f'Out of date: {", ".join(stale)}. Run python docs/readme.py.' if stale else 0)
    for p, data in files.items():
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(data)
    print(f'README.md and {len(pictures)} pictures written')


if __name__ == '__main__': main()
