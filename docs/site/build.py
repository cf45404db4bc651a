"""Build the site from the executed notebooks: `python docs/site/build.py [OUT [linkcheck]]` (default _site). Lessons first, then one API page per module."""
import ast, importlib, inspect, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat
from fastcore.docments import docments, empty

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT/'docs'))
from cells import directives

config = ConfigParser(delimiters=['=']); config.read(ROOT/'settings.ini', encoding='utf-8')
CFG = config['DEFAULT']
REPO, BRANCH = CFG['git_url'].removeprefix('https://github.com/'), CFG['branch']
ROOMS = {'Faces and forgeries': ('00', '03z'), 'The method': ('04', '10z'), 'Training': ('11', '11z'), 'Measuring and looking': ('12', '13z'), 'Using it': ('14', '19'), 'The paper, the answers': ('20', '99')}


def notebooks(): return sorted((ROOT/'nbs').glob('*.ipynb'))


def module_of(nb):
    "The module a notebook exports, or ''"
    found = re.search(r'^#\| *default_exp +(\S+)', '\n'.join(c.source for c in nb.cells if c.cell_type == 'code'), re.M)
    return found[1] if found else ''


def names_in(source):
    "What a cell defines at its top level"
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not any(isinstance(d, ast.Name) and d.id == 'patch' for d in node.decorator_list): yield node.name
        elif isinstance(node, ast.Assign): yield from (o.id for t in node.targets for o in ast.walk(t) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store))


def anchor(module, name):
    "The label of a name; labels know no capitals, Python does"
    return f'madd.{module}.{name}' + ('' if name.islower() else '-constant' if name.isupper() else '-class')


def anchors(cell, module):
    "Where the API page can point to: one label per exported name"
    return '\n'.join(f'({anchor(module, n)})=' for n in dict.fromkeys(names_in(cell.source)) if not n.startswith('_'))


def links(stem, module):
    "The line under a title: where else this page can be read, run or changed"
    at = f'github/{REPO}/blob/{BRANCH}/nbs/{stem}.ipynb'
    out = [f'[Colab](https://colab.research.google.com/{at})', f'[nbviewer](https://nbviewer.org/{at})', f'[source](https://github.com/{REPO}/blob/{BRANCH}/nbs/{stem}.ipynb)']
    if module: out.insert(0, f'[API of madd.{module}](../api/{module}.md)')
    return '<p class="where">\n\n' + ' · '.join(out) + '\n\n</p>'


def stage_notebook(path, folder):
    "A notebook as a page: directives gone, hidden cells gone, links right"
    nb = nbformat.read(path, 4)
    module, cells, titled = module_of(nb), [], False
    for c in nb.cells:
        d = directives(c)
        if d & {'hide', 'default_exp'} or any(o.startswith('default_exp') for o in d) or 'nbdev_export(' in c.source: continue
        if c.cell_type == 'markdown':
            c.source = c.source.replace('](../docs/images/', '](images/' if path.stem == 'index' else '](../images/')
            c.source = re.sub(r'\]\(\.\./(?!images/)', f'](https://github.com/{REPO}/blob/{BRANCH}/', c.source)    # files that are no pages
            if not titled and c.source.startswith('# '):
                titled, (title, *rest) = True, c.source.split('\n')
                c.source = '\n'.join([title, '', links(path.stem, module), *rest])
        else:
            if 'export' in d and (marks := anchors(c, module)): cells.append(nbformat.v4.new_markdown_cell(marks, id=f'a-{c.id}'))
            for o in c.get('outputs', []):                # tables of links are finished Markdown: Sphinx does not look into them
                if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = re.sub(r'\]\((\w+)\.ipynb', r'](\1.html', ''.join(o.data['text/markdown']))
            c.metadata['tags'] = ['remove-input'] if 'echo:false' in d else []
            c.source = '\n'.join(line for line in c.source.splitlines() if not line.startswith('#|'))
        cells.append(c)
    nb.cells = cells
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    nb.metadata['language_info'] = {'name': 'python'}
    nbformat.write(nb, folder/path.name)
    return module


def words(note): return re.sub(r'\s+', ' ', str(note or '')).replace('|', '\\|').replace('<', '&lt;')


def shown(value):
    "A type or a default as code"
    if value in (None, empty, inspect.Parameter.empty): return ''
    text = value.__name__ if inspect.isclass(value) else repr(value) if not isinstance(value, str) else value
    return '`' + text.replace('|', '\\|').replace('`', "'") + '`'


def parameters(f):
    "The docments of a callable as a table: name, type, default, meaning with shape and unit"
    try: docs = docments(f, full=True)
    except Exception: return ''
    rows = [(k, v) for k, v in docs.items() if k not in ('return', 'self', 'cls')]
    out = ['', '| parameter | type | default | meaning |', '|---|---|---|---|'] if rows else []
    for k, v in rows:
        default = '' if v.default in (empty, inspect.Parameter.empty) else '`' + repr(v.default).replace('|', '\\|')[:60] + '`'
        out.append(f'| `{k}` | {shown(v.anno)} | {default} | {words(v.docment)} |')
    r = docs.get('return')
    if r is not None and (r.docment or r.anno not in (None, empty, inspect.Parameter.empty)): out += ['', f'**Returns** {shown(r.anno)} {words(r.docment)}'.rstrip()]
    return '\n'.join(out)


def entry(o, name, module, stem, level='##'):
    "One name of the library: signature, what it does, its parameters, where it is written"
    here = f'[lesson](#{anchor(module, name)})'
    try: file, line = inspect.getsourcefile(o), inspect.getsourcelines(o)[1]; here += f' · [code](https://github.com/{REPO}/blob/{BRANCH}/madd/{Path(file).name}#L{line})'
    except (TypeError, OSError): pass
    out = [f'{level} {name}', '', f'<p class="where">\n\n{here}\n\n</p>', '']
    out += [words(inspect.getdoc(o)) if o.__doc__ and not str(o.__doc__).startswith(f'{name}(') else '', parameters(o), '']
    if inspect.isclass(o):
        for k, m in vars(o).items():
            m = getattr(m, '__func__', m)
            if k.startswith('_') or not inspect.isfunction(m) or not m.__module__.startswith('madd'): continue
            out += [f'{level}# {name}.{k}', '', words(inspect.getdoc(m)), parameters(m), '']
    return '\n'.join(out)


def constant(o, name, module):
    "One line of the table of constants"
    text = repr(o).replace(str(ROOT) + '/', '').replace('`', "'").replace('|', '\\|').replace('\n', ' ')
    return f'| [`{name}`](#{anchor(module, name)}) | `{type(o).__name__}` | `{text[:120]}{"..." if len(text) > 120 else ""}` |'


def stage_api(module, stem, folder):
    "The page of a module"
    m = importlib.import_module(f'madd.{module}')
    title = f'# madd.{module}\n\n{words(m.__doc__)}\n\nWritten in [{stem}](../nbs/{stem}.ipynb).\n'
    names = [n for n in m.__all__ if not n.startswith('_') and hasattr(m, n)]
    body = [entry(getattr(m, n), n, module, stem) for n in names if callable(getattr(m, n))]
    if values := [n for n in names if not callable(getattr(m, n))]:
        body += ['## Constants', '', '| name | type | value |', '|---|---|---|', *(constant(getattr(m, n), n, module) for n in values), '']
    (folder/f'{module}.md').write_text('\n'.join([title, *body]), encoding='utf-8')


def toc(caption, entries, hidden=True):
    return '\n'.join(['```{toctree}', f':caption: {caption}', ':maxdepth: 1', *([':hidden:'] if hidden else []), '', *entries, '```', ''])


def stage(folder):
    "Everything Sphinx reads, in one folder"
    shutil.rmtree(folder, ignore_errors=True)
    for sub in ('nbs', 'api'): (folder/sub).mkdir(parents=True)
    shutil.copytree(ROOT/'docs'/'images', folder/'images')
    modules = {p.stem: stage_notebook(p, folder/'nbs') for p in notebooks()}
    for stem, module in modules.items():
        if module: stage_api(module, stem, folder/'api')
    title = lambda stem: next(c.source for c in nbformat.read(folder/'nbs'/f'{stem}.ipynb', 4).cells if c.source.startswith('# ')).split('\n')[0][2:]
    between = lambda lo, hi: [f'{s.split("_")[0]} {title(s)} <nbs/{s}>' for s in modules if s[0].isdigit() and lo <= s.split('_')[0] <= hi]
    front = nbformat.read(folder/'nbs'/'index.ipynb', 4)
    (folder/'nbs'/'index.ipynb').unlink()
    for c in front.cells:
        if c.cell_type == 'markdown': c.source = re.sub(r'\]\((\d\w*\.ipynb)', r'](nbs/\1', c.source).replace('](../api/', '](api/')
        for o in c.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = re.sub(r'\]\((\d\w*\.html)', r'](nbs/\1', o.data['text/markdown'])
    loose = [f'nbs/{s}' for s in modules if not s[0].isdigit() and s != 'index']      # pages without a place in the order
    tocs = [toc(caption, between(*span)) for caption, span in ROOMS.items()] + [toc('Play', loose)]*bool(loose) + [toc('API', [f'api/{m}' for m in modules.values() if m])]
    front.cells.append(nbformat.v4.new_markdown_cell('\n'.join(tocs), id='toc'))
    nbformat.write(front, folder/'index.ipynb')


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_site').resolve()
    builder, source = sys.argv[2] if len(sys.argv) > 2 else 'html', out.parent/f'{out.name}_src'
    stage(source)
    code = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-j', '2', '-c', str(HERE), '-b', builder, str(source), str(out)]).returncode
    shutil.rmtree(source); shutil.rmtree(out/'.doctrees', ignore_errors=True)
    print(f'{len(list(out.rglob("*.html")))} pages in {out}' if not code else 'The site has the faults listed above.')
    sys.exit(code)


if __name__ == '__main__': main()
